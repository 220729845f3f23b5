"""The chain of stages, from the text of a prompt to the tokens an engine accepts."""

from __future__ import annotations

from collections.abc import Callable

from speculators.doctor.finding import Finding
from speculators.doctor.stages import (
    causality,
    drafting,
    engine,
    layers_read,
    mask_token,
    recorded_drafts,
    rope,
    settings,
    states,
    teacher,
    template,
    tokenizer,
    training_forward,
    verifier,
    vocabulary,
    weights,
)
from speculators.doctor.subject import Subject

Check = Callable[[Subject], Finding]

CHAIN: tuple[Check, ...] = (
    tokenizer.check,
    template.check,
    verifier.check,
    vocabulary.check,
    layers_read.check,
    mask_token.check,
    rope.check,
    causality.check,
    settings.check,
    weights.check,
    states.check,
    teacher.check,
    training_forward.check,
    drafting.check,
    recorded_drafts.check,
    engine.check,
)
"""Each needs no other; the first that fails is the one to mend first."""


def examine(subject: Subject) -> list[Finding]:
    """Return what every stage finds, in order."""
    return [check(subject) for check in CHAIN]

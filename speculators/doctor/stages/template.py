"""Prompts are rendered as they were while training."""

from __future__ import annotations

from speculators.doctor.causes import WRONG_TEMPLATE
from speculators.doctor.finding import Finding, Stage
from speculators.doctor.probe import CONVERSATION
from speculators.doctor.subject import Subject

STAGE = Stage("template", "the served chat template gives the tokens that training saw")
_SHOWN = 12


def check(subject: Subject) -> Finding:
    """Render one conversation and compare token by token with what training recorded."""
    if subject.recorded is None:
        return STAGE.unchecked(subject.unrecorded)
    then = subject.recorded.rendering
    now = tuple(subject.tokenizer.prompt_ids(CONVERSATION))
    if now == then:
        return STAGE.passed("the template renders as in training", where=f"{len(now)} tokens")
    place = next(
        (i for i, pair in enumerate(zip(then, now, strict=False)) if pair[0] != pair[1]),
        min(len(then), len(now)),
    )
    shown = [subject.tokenizer.decode(ids[place : place + _SHOWN]) for ids in (now, then)]
    return STAGE.failed(
        WRONG_TEMPLATE,
        "the template renders another prompt than in training",
        where=f"token {place} of a probe",
        measured=repr(shown[0]),
        allowed=repr(shown[1]),
    )

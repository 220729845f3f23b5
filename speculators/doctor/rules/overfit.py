"""Rows that are known by heart, beside rows that are not."""

from __future__ import annotations

from speculators.doctor.case import Case
from speculators.doctor.causes import OVERFIT
from speculators.doctor.diagnosis import Diagnosis, Rule, confirmed, suspected

_TIMES, _MORE = 2.0, 0.5
"""Every drafter knows its training rows better: one of 135 conversations, after seven passes and
still getting better, walks 1.83 along them and 1.52 along others."""


def look(case: Case) -> Diagnosis | None:
    """Walk along training rows and along held-out ones."""
    said, validated = case.at_end("block_acceptance_length"), case.validated
    if said is None or validated is None or not _apart(said, validated):
        return None
    signature = f"training says tau {said:.2f} of its blocks, validation {validated:.2f}"
    if len(case.validations) > 1:
        lengths = [line.get("acceptance_length", 0.0) for line in case.validations]
        best = max(range(len(lengths)), key=lengths.__getitem__)
        signature += f", best at step {case.validations[best]['step']}"
    if case.lab is None:
        return suspected(OVERFIT, signature, "not made: draft along training rows")
    trained, held_out = case.lab.newest_trained_on.length, case.lab.newest_held_out.length
    if not _apart(trained, held_out):
        return None
    return confirmed(
        OVERFIT,
        signature,
        f"drafting gives tau {trained:.2f} along training rows and {held_out:.2f} along others",
    )


def _apart(trained: float, held_out: float) -> bool:
    return trained - 1 > _TIMES * (held_out - 1) and trained - held_out > _MORE


RULE = Rule((OVERFIT,), look)

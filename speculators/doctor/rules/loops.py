"""Answers that repeat themselves are easy to draft, and say nothing."""

from __future__ import annotations

from speculators.doctor.case import Case
from speculators.doctor.causes import LOOPING_ANSWERS
from speculators.doctor.diagnosis import Diagnosis, Rule, confirmed

_FEWEST_DISTINCT = 0.4


def look(case: Case) -> Diagnosis | None:
    """Count distinct 4-grams of the answers that were decoded."""
    share = case.decoded.get("distinct_4gram_share")
    if share is None or share >= _FEWEST_DISTINCT:
        return None
    return confirmed(
        LOOPING_ANSWERS,
        f"{share:.0%} of the answers' 4-grams are distinct",
        f"acceptance means something from {_FEWEST_DISTINCT:.0%} on",
    )


RULE = Rule((LOOPING_ANSWERS,), look)

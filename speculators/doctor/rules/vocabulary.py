"""Tokens of the verifier that the drafter cannot propose end every draft."""

from __future__ import annotations

from speculators.doctor.case import Case
from speculators.doctor.causes import SMALL_VOCABULARY
from speculators.doctor.diagnosis import Diagnosis, Rule, confirmed

_MOST = 0.05


def look(case: Case) -> Diagnosis | None:
    """Count the verifier's choices that are missing from the draft vocabulary."""
    if case.lab is None or case.lab.drafter.vocabulary.is_full:
        return None
    missed, vocabulary = case.lab.undraftable_share, case.lab.drafter.vocabulary
    if missed <= _MOST:
        return None
    return confirmed(
        SMALL_VOCABULARY,
        f"{len(vocabulary):,} of {vocabulary.vocab_size:,} tokens can be drafted",
        f"{missed:.0%} of the verifier's choices along held-out rows cannot (allowed {_MOST:.0%})",
    )


RULE = Rule((SMALL_VOCABULARY,), look)

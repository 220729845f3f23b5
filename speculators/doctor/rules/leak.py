"""Training that is right where drafting on the very same rows is not has seen the answer."""

from __future__ import annotations

from speculators.doctor.case import Case
from speculators.doctor.causes import LEAKING_MASK
from speculators.doctor.diagnosis import Diagnosis, Rule, confirmed, suspected

_TIMES, _MORE = 2.0, 0.5


def look(case: Case) -> Diagnosis | None:
    """Compare what training says of its blocks with drafting on training rows."""
    said = case.at_end("block_acceptance_length")
    got = case.decoded.get("acceptance_length") or case.validated
    if said is None or got is None or not _apart(said, got):
        return None
    signature = f"training says tau {said:.2f} of its blocks, acceptance is {got:.2f}"
    if case.lab is None:
        return suspected(LEAKING_MASK, signature, "not made: draft along training rows")
    drafted = case.lab.newest_trained_on.length
    if not _apart(said, drafted):
        return None  # right on what it was trained on: it has learnt, if by heart
    return confirmed(
        LEAKING_MASK, signature, f"drafting along training rows gives tau {drafted:.2f} too"
    )


def _apart(said: float, got: float) -> bool:
    return said - 1 > _TIMES * (got - 1) and said - got > _MORE


RULE = Rule((LEAKING_MASK,), look, settles=True)

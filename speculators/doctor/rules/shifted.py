"""Slots that were trained on a neighbour of their token draft that neighbour."""

from __future__ import annotations

from speculators.doctor.case import Case
from speculators.doctor.causes import SHIFTED_LABELS
from speculators.doctor.diagnosis import Diagnosis, Rule, confirmed

_OFFSETS = (-1, 0, 1, 2)
_TIMES, _MORE = 2.0, 0.1
"""In healthy runs of 300 steps 36 to 48 % of first tokens stand in their place and at most 11 % in
another; where labels were planted one token late, 9 % and 31 %."""


def look(case: Case) -> Diagnosis | None:
    """Compare first drafted tokens with the text before and behind their place."""
    if case.lab is None:
        return None
    shares = case.lab.shifted_shares(_OFFSETS)
    best = max(_OFFSETS, key=shares.__getitem__)
    if best == 0 or shares[best] < _TIMES * shares[0] or shares[best] - shares[0] < _MORE:
        return None
    return confirmed(
        SHIFTED_LABELS,
        f"first drafted tokens are right {shares[0]:.0%} of the time",
        f"held against the text {best:+d} places further they are right {shares[best]:.0%}",
    )


RULE = Rule((SHIFTED_LABELS,), look, settles=True)

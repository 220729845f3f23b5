"""Steps that were skipped because something was not finite."""

from __future__ import annotations

from speculators.doctor.case import Case
from speculators.doctor.causes import UNSTABLE
from speculators.doctor.diagnosis import Diagnosis, Rule, confirmed

_MOST = 0.02


def look(case: Case) -> Diagnosis | None:
    """Count them."""
    bad, steps, tensor = case.bad_steps()
    if bad <= _MOST * max(steps, 1):
        return None
    return confirmed(
        UNSTABLE, f"{bad} of {steps} steps were skipped", f"the first bad tensor was {tensor}"
    )


RULE = Rule((UNSTABLE,), look)

"""Answer tokens that no block ever predicts are not learnt from."""

from __future__ import annotations

from speculators.doctor.case import Case
from speculators.doctor.causes import TOO_FEW_ANCHORS
from speculators.doctor.diagnosis import Diagnosis, Rule, confirmed

_FEWEST = 0.5


def look(case: Case) -> Diagnosis | None:
    """Estimate the share of supervised tokens that were a target at least once."""
    per_pass = case.at_end("coverage")
    if per_pass is None:
        return None
    ever = 1 - (1 - per_pass) ** max(case.epochs, 1.0)
    if ever >= _FEWEST:
        return None
    anchors = getattr(case.config.speculator, "max_anchors", None)
    change = None
    if anchors is not None:
        wanted = int(anchors * min(1 / max(per_pass, 1e-3), 64))
        change = f"raise speculator.max_anchors from {anchors} towards {wanted}, or training.epochs"
    return confirmed(
        TOO_FEW_ANCHORS,
        f"a pass predicts {per_pass:.0%} of the answer tokens",
        f"in {case.epochs:.1f} passes at most {ever:.0%} of them were ever predicted (allowed "
        f"{_FEWEST:.0%} at least)",
        change,
    )


RULE = Rule((TOO_FEW_ANCHORS,), look)

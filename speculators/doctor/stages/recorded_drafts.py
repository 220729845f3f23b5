"""The checkpoint drafts after the recorded probes what it drafted while training."""

from __future__ import annotations

from speculators.doctor.causes import CHANGED_WEIGHTS
from speculators.doctor.drafting import session_drafts
from speculators.doctor.finding import Finding, Stage
from speculators.doctor.subject import Subject

STAGE = Stage(
    "recorded drafts",
    "read back and run here, the drafter makes the choices it made while training",
)
_FEWEST_CLEAR = 0.95
"""Share of equal first tokens, of those that were clear choices."""


def check(subject: Subject) -> Finding:
    """Draft after the recorded positions; clear choices must be the same."""
    drafter, recorded = subject.drafter, subject.recorded
    if recorded is None or not recorded.probes or drafter is None:
        return STAGE.unchecked(subject.unrecorded)
    same = clear = equal = counted = 0
    first = ""
    for number, (probe, then) in enumerate(zip(subject.probes, recorded.probes, strict=True)):
        starts = list(then.drafts)
        for at, now in zip(starts, session_drafts(drafter, probe, starts).tolist(), strict=True):
            before = then.drafts[at]
            equal += sum(a == b for a, b in zip(now, before, strict=False))
            counted += len(before)
            if at in then.clear:
                clear, same = clear + 1, same + (now[:1] == before[:1])
                if now[:1] != before[:1]:
                    first = first or f"position {at} (prompt {number})"
    measured = f"{same} of {clear} clear choices equal, {equal} of {counted} tokens"
    if not clear:
        return STAGE.unchecked("no draft was a clear choice yet")
    if same < _FEWEST_CLEAR * clear:
        return STAGE.failed(
            CHANGED_WEIGHTS,
            "the checkpoint drafts other tokens than while training",
            where=first,
            measured=measured,
            allowed=f"{_FEWEST_CLEAR:.0%} of clear choices",
        )
    return STAGE.passed(
        "the checkpoint drafts what it drafted while training",
        measured=measured,
        allowed=f"{_FEWEST_CLEAR:.0%} of clear choices",
    )

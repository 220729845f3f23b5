"""Batched drafting, on which training and validation rest, drafts what decoding drafts."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from speculators.doctor.causes import LEAKING_MASK, OTHER_FORWARD
from speculators.doctor.drafting import ProbeDrafts
from speculators.doctor.finding import Finding, Stage
from speculators.doctor.subject import Subject

STAGE = Stage(
    "drafting",
    "drafts of whole rows at once equal those of a session with caches, token by token",
)
_COARSE_SHARE = 0.05
"""Share of other tokens in bf16 arithmetic, where only first ones that were clear choices count."""
_STATES = (3.0, -5.0)
"""Values that states behind a draft's start are filled with."""
NOTHING_CLEAR = "no draft was a clear choice that rounding could not change"


def check(subject: Subject) -> Finding:
    """Draft along every probe both ways."""
    drafter = subject.drafter
    if drafter is None or not subject.probes:
        return STAGE.unchecked("there is no drafter to run")
    equal = counted = 0
    first = ""
    for number, drafts in enumerate(subject.drafts):
        row, starts = drafts.probe.row(), drafts.starts
        at = torch.tensor(starts, dtype=torch.int64, device=row.input_ids.device)
        counts = comparable(drafts, exact=subject.is_exact)
        wrong = (drafter.draft(row, at).cpu() != drafts.tokens) & counts
        counts &= wrong.cumsum(-1) - wrong.int() == 0  # what follows another token is another draft
        wrong &= counts
        counted += int(counts.sum())
        equal += int((counts & ~wrong).sum())
        if not first and bool(wrong.any()):
            place, token = (int(i) for i in wrong.nonzero()[0])
            first = f"drafted token {token + 1} after position {starts[place]} (prompt {number})"
    if not counted:
        return STAGE.unchecked(NOTHING_CLEAR)
    allowed = fewest_equal(counted, exact=subject.is_exact)
    measured = f"{equal} of {counted} tokens equal"
    if equal < allowed:
        leaks = _sees_ahead(subject)
        return STAGE.failed(
            LEAKING_MASK if leaks else OTHER_FORWARD,
            "batched drafts differ from those of a session",
            where=first,
            measured=measured,
            allowed=f"{allowed} or more",
            evidence=leaks,
        )
    return STAGE.passed(
        "batched drafts equal those of a session", measured=measured, allowed=f"{allowed} or more"
    )


def fewest_equal(counted: int, *, exact: bool) -> int:
    """Return how many of so many tokens must be equal.

    Rounding decides between two tokens of nearly the same likelihood, in fp32 too: an untrained
    drafter has one such tie in some thousand choices. A fault makes many differences.
    """
    return counted - (max(1, counted // 100) if exact else int(_COARSE_SHARE * counted))


def comparable(drafts: ProbeDrafts, *, exact: bool) -> Bool[Tensor, "start draft"]:
    """Mark drafted tokens that both ways must agree on: all in fp32, else clear first ones."""
    counts = torch.full_like(drafts.tokens, exact, dtype=torch.bool)
    if not exact:
        counts[:, 0] = torch.tensor(drafts.clear, dtype=torch.bool)
    return counts


def _sees_ahead(subject: Subject) -> str:
    """Say whether batched drafts change with states that do not exist yet."""
    drafter, none = subject.drafter, torch.empty(0, dtype=torch.int64)
    if drafter is None:
        return ""
    for drafts in subject.drafts:
        for start in drafts.starts:
            rows = [drafts.probe.continued(start, none, 1, value) for value in _STATES]
            at = torch.tensor([start], dtype=torch.int64, device=drafts.probe.states.aux.device)
            if not torch.equal(*(drafter.draft(row, at) for row in rows)):
                return "they change with the state of the newest token, which does not exist yet"
    return ""

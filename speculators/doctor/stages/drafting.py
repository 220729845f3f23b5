"""Batched drafting, on which training and validation rest, drafts what decoding drafts."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from speculators.algorithms.base import Drafter
from speculators.doctor.causes import LEAKING_MASK, OTHER_FORWARD
from speculators.doctor.drafting import is_clear, session_drafts, starts_of
from speculators.doctor.finding import Finding, Stage
from speculators.doctor.probe import Probe
from speculators.doctor.subject import Subject

STAGE = Stage(
    "drafting",
    "drafts of whole rows at once equal those of a session with caches, token by token",
)
FEWEST_EQUAL = 0.95
"""Share of equal tokens in bf16 arithmetic, where only first tokens that were clear choices count;
in fp32 all are equal."""
NOTHING_CLEAR = "no draft was a clear choice that rounding could not change"


def check(subject: Subject) -> Finding:
    """Draft along every probe both ways."""
    drafter = subject.drafter
    if drafter is None or not subject.probes:
        return STAGE.unchecked("there is no drafter to run")
    equal = counted = 0
    first = ""
    for number, probe in enumerate(subject.probes):
        starts = starts_of(drafter, probe)
        expected = session_drafts(drafter, probe, starts)
        row = probe.row()
        at = torch.tensor(starts, dtype=torch.int64, device=row.input_ids.device)
        counts = comparable(subject, drafter, probe, starts)
        wrong = (drafter.draft(row, at).cpu() != expected) & counts
        counted += int(counts.sum())
        equal += int((counts & ~wrong).sum())
        if not first and bool(wrong.any()):
            place, token = (int(i) for i in wrong.nonzero()[0])
            first = f"drafted token {token + 1} after position {starts[place]} (prompt {number})"
    if not counted:
        return STAGE.unchecked(NOTHING_CLEAR)
    allowed = 1.0 if subject.is_exact else FEWEST_EQUAL
    measured = f"{equal} of {counted} tokens equal"
    if equal < allowed * counted:
        leaks = _sees_ahead(subject)
        return STAGE.failed(
            LEAKING_MASK if leaks else OTHER_FORWARD,
            "batched drafts differ from those of a session",
            where=first,
            measured=measured,
            allowed=f"{allowed:.0%}",
            evidence=leaks,
        )
    return STAGE.passed(
        "batched drafts equal those of a session", measured=measured, allowed=f"{allowed:.0%}"
    )


def comparable(
    subject: Subject, drafter: Drafter[Any], probe: Probe, starts: list[int]
) -> Bool[Tensor, "start draft"]:
    """Mark drafted tokens that both ways must agree on: all in fp32, else clear first ones."""
    counts = torch.zeros(len(starts), drafter.num_draft_tokens, dtype=torch.bool)
    if subject.is_exact:
        return ~counts
    clear = [is_clear(drafter, probe, at) for at in starts]
    counts[:, 0] = torch.tensor(clear, dtype=torch.bool)
    return counts


def _sees_ahead(subject: Subject) -> str:
    """Say whether batched drafts change with states that do not exist yet."""
    drafter, probe = subject.drafter, subject.probes[0]
    if drafter is None:
        return ""
    none = torch.empty(0, dtype=torch.int64)
    starts = starts_of(drafter, probe)[:1]
    rows = [probe.continued(at, none, 1, value) for at in starts for value in (3.0, -5.0)]
    at = torch.tensor(starts, dtype=torch.int64, device=probe.states.aux.device)
    drafts = [drafter.draft(row, at) for row in rows]
    if len(drafts) == 2 and not torch.equal(*drafts):
        return "they change with the state of the newest token, which does not exist yet"
    return ""

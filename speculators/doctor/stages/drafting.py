"""Batched drafting, on which training and validation rest, drafts what decoding drafts."""

from __future__ import annotations

import torch

from speculators.doctor.causes import LEAKING_MASK, OTHER_FORWARD
from speculators.doctor.drafting import session_drafts, starts_of
from speculators.doctor.finding import Finding, Stage
from speculators.doctor.subject import Subject

STAGE = Stage(
    "drafting",
    "drafts of whole rows at once equal those of a session with caches, token by token",
)
FEWEST_EQUAL = 0.8
"""Share of equal tokens in bf16 arithmetic, where close choices may swap; in fp32 all are equal."""


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
        at = torch.tensor(starts, device=row.input_ids.device)
        drafted = drafter.draft(row, at).cpu()
        same = drafted == expected
        equal, counted = equal + int(same.sum()), counted + same.numel()
        if not first and not bool(same.all()):
            place, token = (int(i) for i in (~same).nonzero()[0])
            first = f"drafted token {token + 1} after position {starts[place]} (prompt {number})"
    if not counted:
        return STAGE.unchecked("no probe has room for a draft")
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


def _sees_ahead(subject: Subject) -> str:
    """Say whether batched drafts change with states that do not exist yet."""
    drafter, probe = subject.drafter, subject.probes[0]
    if drafter is None:
        return ""
    starts = starts_of(drafter, probe)[:1]
    none = torch.empty(0, dtype=torch.int64)
    rows = [probe.continued(at, none, 1, value) for at in starts for value in (3.0, -5.0)]
    drafts = [drafter.draft(row, torch.tensor(starts, device=row.input_ids.device)) for row in rows]
    if len(drafts) == 2 and not torch.equal(*drafts):
        return "they change with the state of the newest token, which does not exist yet"
    return ""

"""Positions of a draft that no step of training ever reached."""

from __future__ import annotations

import re

from speculators.doctor.case import Case
from speculators.doctor.causes import UNTRAINED_POSITIONS
from speculators.doctor.diagnosis import Diagnosis, Rule, confirmed

_KEY = re.compile(r"accuracy_(\d+)")


def look(case: Case) -> Diagnosis | None:
    """Compare the tokens of a draft with the slots training reports on."""
    found = case.validations[-1] if case.validations else case.decoded
    drafted = found.get("num_draft_tokens") or len(found.get("acceptance_per_position") or ())
    line = case.training[-1] if case.training else {}
    trained = max((int(m[1]) for key in line if (m := _KEY.fullmatch(key))), default=0)
    if not trained or not drafted or trained >= drafted:
        return None
    per_position = found.get("acceptance_per_position") or []
    tail = ", ".join(f"{share:.1%}" for share in per_position[trained - 1 :])
    return confirmed(
        UNTRAINED_POSITIONS,
        f"{drafted} tokens are drafted, {trained} are trained",
        f"accepted from position {trained} on: {tail}" if tail else "",
    )


RULE = Rule((UNTRAINED_POSITIONS,), look)

"""One row of a source: where it stands, what it became, or why it could not be used."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from speculators.data.types import Conversation


@dataclass(frozen=True)
class Origin:
    """Place of a row in its source.

    Attributes:
        file: path as the user gave it, or the name of a hub data set.
        line: 1 for the first line (of a file) or row (of a table).
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Severity(Enum):
    """Whether a row is a mistake, or merely of no use for training."""

    bad = "bad"
    unusable = "unusable"


@dataclass(frozen=True)
class RowProblem:
    """A row that is left out.

    Attributes:
        origin: where it stands.
        reason: kind of problem, the same for all rows that have it; reports count by it.
        detail: what exactly is wrong with this row.
        severity: bad rows stop the preparation under `data.bad_rows=error`; unusable rows
            (no assistant turn, nothing in them) are always dropped and counted.
    """

    origin: Origin
    reason: str
    detail: str = ""
    severity: Severity = Severity.bad

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}" + (f": {self.detail}" if self.detail else "")


@dataclass(frozen=True)
class RawRow:
    """A parsed row in whatever layout its source has."""

    value: Any
    origin: Origin


@dataclass(frozen=True)
class TokenRow:
    """A row that other tools have tokenised already; its tokens are used unchanged.

    Attributes:
        input_ids: tokens.
        loss_mask: True on supervised tokens.
        conversation_id: id of the source, or None where it names none.
        source: file or data set, shown in reports.
    """

    input_ids: Int[np.ndarray, "token"]
    loss_mask: Bool[np.ndarray, "token"]
    conversation_id: str | None
    source: str


@dataclass(frozen=True)
class Record:
    """A row that can be used."""

    item: Conversation | TokenRow
    origin: Origin


def printable(value: Any) -> str:
    """Return a value as text that can be written: halves of surrogate pairs become `?`."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


class RowError(Exception):
    """Raised while a row is interpreted; readers turn it into a `RowProblem`.

    Args:
        reason: kind of problem.
        detail: what exactly is wrong.
        severity: bad or unusable.
    """

    def __init__(self, reason: str, detail: str = "", severity: Severity = Severity.bad) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.severity = reason, detail, severity

    def at(self, origin: Origin) -> RowProblem:
        """Return the problem with its place."""
        return RowProblem(origin, self.reason, self.detail, self.severity)

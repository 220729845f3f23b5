"""The first reading of a source: every row validated, and the ones to use chosen."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from speculators.config.schema.data import BadRows
from speculators.data.readers import Source
from speculators.data.report import DataReport
from speculators.data.rows import Record, RowProblem, Severity, TokenRow
from speculators.errors import DataError

_SHOWN = 5


@dataclass(frozen=True)
class Selection:
    """Which rows of a source to use.

    Attributes:
        num_records: how many.
        chosen: numbers of the rows; None means every usable one.
    """

    num_records: int
    chosen: frozenset[int] | None

    def records(self, source: Source) -> Iterator[Record]:
        """Read the source again and yield the chosen records, in its order."""
        for number, row in enumerate(source.rows()):
            if isinstance(row, Record) and (self.chosen is None or number in self.chosen):
                yield row


def select_rows(
    source: Source, report: DataReport, *, limit: int | None, bad_rows: BadRows, seed: int
) -> Selection:
    """Read a source once: count, collect problems, draw `limit` rows.

    Args:
        source: where rows come from.
        report: counts and examples are added to it.
        limit: use at most this many.
        bad_rows: what to do when rows cannot be read.
        seed: of the draw, which depends on the rows and not on their order.

    Raises:
        DataError: rows cannot be read and `bad_rows` is `error`; names the first of them.
    """
    drawn: list[tuple[int, int]] = []
    num_rows = num_records = 0
    bad: list[RowProblem] = []
    num_bad = 0
    for number, row in enumerate(source.rows()):
        num_rows += 1
        if isinstance(row, RowProblem):
            report.drop(row.reason, str(row))
            if row.severity is Severity.bad:
                num_bad += 1
                bad += [row] if len(bad) < _SHOWN else []
            continue
        num_records += 1
        if limit is not None:
            item = (-_lot(seed, row), number)
            (heapq.heappush if len(drawn) < limit else heapq.heappushpop)(drawn, item)
    if num_bad and bad_rows is BadRows.error:
        raise DataError(_refusal(bad, num_bad, num_rows))
    report.num_rows += num_rows
    if limit is None:
        return Selection(num_records, None)
    return Selection(len(drawn), frozenset(number for _, number in drawn))


def _refusal(bad: list[RowProblem], num_bad: int, num_rows: int) -> str:
    lines = [str(problem) for problem in bad]
    if num_bad > len(bad):
        lines.append(f"and {num_bad - len(bad)} more")
    head = f"{num_bad} of {num_rows} rows cannot be used (data.bad_rows=drop leaves them out):"
    return "\n  ".join([head, *lines])


def _lot(seed: int, record: Record) -> int:
    item = record.item
    name = item.conversation_id
    if isinstance(item, TokenRow) and name is None:
        name = hashlib.sha256(item.input_ids.tobytes()).hexdigest()
    digest = hashlib.sha256(f"{seed}/max_samples/{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")

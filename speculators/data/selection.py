"""The first reading of the sources: every row validated, and the ones to use chosen."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt64

from speculators.config.schema import DataConfig
from speculators.config.schema.data import BadRows, Contaminated, Duplicates
from speculators.data.contamination import PromptSets
from speculators.data.duplicates import DuplicateFilter
from speculators.data.readers import Part
from speculators.data.report import DataReport
from speculators.data.rows import Record, RowProblem, Severity, TokenRow
from speculators.errors import DataError

_SHOWN = 5


@dataclass(frozen=True)
class Selection:
    """Which rows of the sources to use.

    Attributes:
        parts: the sources.
        rows: per source the numbers of its rows, ascending.
    """

    parts: Sequence[Part]
    rows: Sequence[Int[np.ndarray, "_"]]

    @property
    def num_records(self) -> int:
        """How many rows."""
        return sum(len(rows) for rows in self.rows)

    def records(self) -> Iterator[Record]:
        """Read the sources again and yield the chosen records, in their order."""
        for part, rows in zip(self.parts, self.rows, strict=True):
            chosen = iter(rows.tolist())
            wanted = next(chosen, None)
            if wanted is None:
                continue
            for number, row in enumerate(part.source.rows()):
                if number != wanted:
                    continue
                assert isinstance(row, Record), "a source changed while it was read"
                yield row
                wanted = next(chosen, None)
                if wanted is None:
                    break


class Selector:
    """Reads sources, counts, collects problems, and draws.

    Args:
        config: policies.
        report: counts and examples are added to it.
        seed: of the draw, which depends on the rows and not on their order.
        prompts: evaluation prompts to look for.
        raises: stop with an error where `data.bad_rows` says so, once a source has been read.
    """

    def __init__(
        self,
        config: DataConfig,
        report: DataReport,
        *,
        seed: int,
        prompts: PromptSets | None,
        raises: bool = True,
    ) -> None:
        self._config, self._report, self._seed = config, report, seed
        self._prompts, self._raises = prompts, raises
        keeps = config.duplicates is Duplicates.keep
        similarity = config.duplicate_similarity
        self._copies = None if keeps else DuplicateFilter(config.duplicates, similarity)

    def select(self, parts: Sequence[Part], limit: int | None = None) -> Selection:
        """Read every source once and choose the rows to use.

        Args:
            parts: the sources.
            limit: use at most this many conversations in total.

        Raises:
            DataError: rows cannot be read and `data.bad_rows` is `error`; names the first of them.
        """
        candidates = [self._read(part) for part in parts]
        chosen = [found.lowest(part.limit) for part, found in zip(parts, candidates, strict=True)]
        if any(part.weight is not None for part in parts):
            quotas = shares([len(found) for found in chosen], parts, limit)
            chosen = [found.lowest(quota) for found, quota in zip(chosen, quotas, strict=True)]
        elif limit is not None:
            chosen = _lowest_of_all(chosen, limit)
        return Selection(parts, [np.sort(found.rows) for found in chosen])

    def _read(self, part: Part) -> _Candidates:
        lots, numbers = array("Q"), array("q")
        bad: list[RowProblem] = []
        num_bad = num_rows = 0
        for number, row in enumerate(part.source.rows()):
            num_rows += 1
            if isinstance(row, RowProblem):
                is_bad = row.severity is Severity.bad
                self._report.drop(row.reason, str(row), stops=is_bad and self._stops)
                if is_bad:
                    num_bad += 1
                    bad += [row] if len(bad) < _SHOWN else []
            elif self._is_wanted(row):
                lots.append(_lot(self._seed, row))
                numbers.append(number)
                if part.source.takes_first and len(numbers) == part.limit:
                    break
        if num_bad and self._stops and self._raises:
            raise DataError(_refusal(bad, num_bad, num_rows))
        self._report.num_rows += num_rows
        return _Candidates(
            np.frombuffer(lots, dtype=np.uint64), np.frombuffer(numbers, dtype=np.int64)
        )

    @property
    def _stops(self) -> bool:
        return self._config.bad_rows is BadRows.error

    def _is_wanted(self, row: Record) -> bool:
        if self._copies is not None and (reason := self._copies.reason(row)) is not None:
            self._report.drop(reason, f"{row.origin}: {reason}", asked_for=True)
            return False
        name = None if self._prompts is None else self._prompts.found_in(row)
        if name is None:
            return True
        reason = f"holds a prompt of {name}"
        self._report.contaminated[name] = self._report.contaminated.get(name, 0) + 1
        if self._config.contaminated is Contaminated.keep:
            return True
        self._report.drop(reason, f"{row.origin}: {reason}", asked_for=True)
        return False


@dataclass(frozen=True)
class _Candidates:
    """Rows of a source that could be used: what each draws, and its number."""

    lots: UInt64[np.ndarray, "row"]
    rows: Int[np.ndarray, "row"]

    def __len__(self) -> int:
        return len(self.rows)

    def lowest(self, limit: int | None) -> _Candidates:
        """Return the rows with the lowest lots, at most `limit` of them."""
        if limit is None or limit >= len(self):
            return self
        order = np.lexsort((self.rows, self.lots))[:limit]
        return _Candidates(self.lots[order], self.rows[order])


def _lowest_of_all(found: Sequence[_Candidates], limit: int) -> list[_Candidates]:
    """Return the rows with the lowest lots of all sources together."""
    lots = np.concatenate([part.lots for part in found])
    kept = np.zeros(len(lots), dtype=bool)
    kept[np.argsort(lots, kind="stable")[:limit]] = True
    borders = np.cumsum([len(part) for part in found])[:-1]
    return [
        _Candidates(part.lots[inside], part.rows[inside])
        for part, inside in zip(found, np.split(kept, borders), strict=True)
    ]


def shares(counts: Sequence[int], parts: Sequence[Part], limit: int | None) -> list[int]:
    """Return how many conversations of each source a mixture uses.

    The total is the largest for which no source has to repeat itself, at most `limit`; it is
    divided by weight, and what rounding leaves goes to the largest fractions.

    Args:
        counts: conversations each source could give.
        parts: their weights; none counts as 1.
        limit: largest total.

    Raises:
        DataError: a source has nothing to give.
    """
    for part, count in zip(parts, counts, strict=True):
        if count == 0:
            raise DataError(f"{part.source.name}: no row is left to use in the mixture")
    asked = np.array([1.0 if part.weight is None else part.weight for part in parts])
    weights = asked / asked.sum()
    total = float((np.array(counts) / weights).min())
    total = total if limit is None else min(total, limit)
    # The tiny addition undoes rounding: 0.75 of 4 is 3.
    quotas = np.floor(weights * total + 1e-9).astype(np.int64)
    left = int(total + 1e-9) - int(quotas.sum())
    for index in np.argsort(quotas - weights * total, kind="stable")[:left]:
        quotas[index] += quotas[index] < counts[index]
    return quotas.tolist()


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

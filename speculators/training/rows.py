"""Packed rows as the trainer takes them: in order, counted, with the waiting measured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Protocol, runtime_checkable

from speculators.data.types import PackedBatch
from speculators.errors import DataError


@runtime_checkable
class RowSource(Protocol):
    """What the trainer needs of a loader. Same epoch, same rows, wherever it starts."""

    @property
    def fingerprint(self) -> str:
        """Content hash of the rows and their order."""
        ...

    def rows_in_epoch(self, epoch: int) -> int:
        """Return the number of packed rows of an epoch."""
        ...

    def iterate(self, epoch: int, first_row: int) -> Iterator[PackedBatch]:
        """Yield the rows of an epoch from `first_row` on; rows before it cost nothing."""
        ...

    def gauges(self) -> Mapping[str, float]:
        """Return how what is behind the rows stands now; see `HiddenStateSource.gauges`."""
        ...

    def advice(self) -> str:
        """Return one sentence for a trainer that waits: why, and what to change."""
        ...


class EpochRows:
    """The rest of one epoch, handed out step by step.

    Args:
        source: where rows come from.
        epoch: which epoch.
        first_row: rows already trained on.

    Attributes:
        num_rows: rows of the whole epoch.
        seconds: time spent waiting for rows.

    Raises:
        DataError: the epoch has no rows.
    """

    def __init__(self, source: RowSource, epoch: int, first_row: int) -> None:
        self.num_rows = source.rows_in_epoch(epoch)
        if self.num_rows < 1:
            raise DataError(f"epoch {epoch} has no packed row to train on")
        self.seconds = 0.0
        self._epoch = epoch
        self._iterator = source.iterate(epoch, first_row)

    def __enter__(self) -> EpochRows:
        """Nothing to open: the source starts with the first row."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the source stop working ahead."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()

    def take(self, count: int) -> Iterator[PackedBatch]:
        """Yield the next `count` rows.

        Raises:
            DataError: the source ended early.
        """
        for _ in range(count):
            start = time.perf_counter()
            row = next(self._iterator, None)
            self.seconds += time.perf_counter() - start
            if row is None:
                raise DataError(
                    f"epoch {self._epoch} was to have {self.num_rows} packed rows, but the loader "
                    "ended before; were hidden states removed while training?"
                )
            yield row

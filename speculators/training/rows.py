"""Packed rows as the trainer takes them: in order, counted, with the waiting measured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Protocol, runtime_checkable

from speculators.data.types import PackedBatch
from speculators.errors import DataError
from speculators.modules.parts import part
from speculators.training.ranks import Ranks


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

    def iterate(
        self, epoch: int, first_row: int, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[PackedBatch]:
        """Yield rows `first_row + rank`, then every `world_size`-th; others cost nothing.

        Every rank gets the same number: rows of padding stand where there are no more.
        """
        ...

    def gauges(self) -> Mapping[str, float]:
        """Return how what is behind the rows stands now; see `HiddenStateSource.gauges`."""
        ...

    def advice(self) -> str:
        """Return one sentence for a trainer that waits: why, and what to change."""
        ...

    def awaited(self) -> Sequence[str]:
        """Return the samples of the row whose hidden states are waited for; of any thread."""
        ...


class EpochRows:
    """The rest of one epoch, handed out step by step.

    Args:
        source: where rows come from.
        epoch: which epoch.
        first_row: rows already trained on, by all ranks together.
        ranks: of the run; this process gets its share.

    Attributes:
        num_rows: rows of the whole epoch, of all ranks.
        seconds: time spent waiting for rows.

    Raises:
        DataError: the epoch has no rows.
    """

    def __init__(self, source: RowSource, epoch: int, first_row: int, ranks: Ranks) -> None:
        self.num_rows = source.rows_in_epoch(epoch)
        if self.num_rows < 1:
            raise DataError(f"epoch {epoch} has no packed row to train on")
        self.seconds = 0.0
        self._epoch = epoch
        self._iterator = source.iterate(
            epoch, first_row, rank=ranks.rank, world_size=ranks.world_size
        )

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

    @part("data wait")
    def _wait(self) -> PackedBatch | None:
        start = time.perf_counter()
        row = next(self._iterator, None)
        self.seconds += time.perf_counter() - start
        return row

    def take(self, count: int) -> Iterator[PackedBatch]:
        """Yield the next `count` rows.

        Raises:
            DataError: the source ended early.
        """
        for _ in range(count):
            row = self._wait()
            if row is None:
                raise DataError(
                    f"epoch {self._epoch} was to have {self.num_rows} packed rows, but the loader "
                    "ended before; were hidden states removed while training?"
                )
            yield row

"""Several samples in one row: which ones, so that hardly any place stays empty.

Samples are taken in an order drawn from (seed, epoch), a window at a time; within a window the
longest is placed first, each into the row where it leaves the least room (best-fit decreasing).
Memory is a few integers per sample; every sample stands in exactly one row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from jaxtyping import Int

from speculators.errors import DataError

WINDOW = 4096
"""Samples packed together. Larger windows fill little better and mix the data less."""


class Rows(Sequence[np.ndarray]):
    """Rows of sample indices, held as two flat arrays.

    Args:
        indices: samples of all rows, one row after another.
        offsets: where each row begins, and the end of the last.
    """

    def __init__(
        self, indices: Int[np.ndarray, "sample"], offsets: Int[np.ndarray, "row_plus_one"]
    ) -> None:
        self.indices, self.offsets = indices, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Rows:
        if isinstance(index, slice):
            return self._reordered(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        return self.indices[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def _reordered(self, order: Int[np.ndarray, "row"]) -> Rows:
        sizes = np.diff(self.offsets)[order]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        starts = np.repeat(self.offsets[:-1][order] - offsets[:-1], sizes)
        return Rows(self.indices[starts + np.arange(len(starts))], offsets)

    def of_rank(self, rank: int, world_size: int) -> Rows:
        """Return every `world_size`-th row from `rank` on.

        Every rank gets equally many: where rows run out, empty ones follow. Rows are nearly full
        and in random order, so ranks get nearly the same number of tokens too.
        """
        mine = self._reordered(np.arange(rank, len(self), world_size))
        missing = -(-len(self) // world_size) - len(mine)
        offsets = np.concatenate([mine.offsets, np.full(missing, mine.offsets[-1])])
        return Rows(mine.indices, offsets)

    def shuffled(self, generator: np.random.Generator) -> Rows:
        """Return the same rows in another order."""
        return self._reordered(generator.permutation(len(self)))


def pack(
    lengths: Int[np.ndarray, "sample"],
    sequence_length: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
) -> Rows:
    """Return rows of at most `sequence_length` tokens that hold every sample exactly once.

    Args:
        lengths: tokens of every sample.
        sequence_length: tokens of a row.
        seed: of the run.
        epoch: another epoch has other rows.
        shuffle: False takes the samples as they stand and ignores seed and epoch.

    Raises:
        DataError: a sample does not fit into a row.
    """
    longest = int(lengths.max()) if len(lengths) else 0
    if longest > sequence_length:
        raise DataError(
            f"training.sequence_length={sequence_length}: a sample has {longest} tokens; prepare "
            "the data with this length"
        )
    if not shuffle:
        return _pack_windows(lengths, np.arange(len(lengths)), sequence_length)
    generator = np.random.default_rng([seed & 0xFFFFFFFF, epoch, 0x7061636B])
    rows = _pack_windows(lengths, generator.permutation(len(lengths)), sequence_length)
    return rows.shuffled(generator)


def _pack_windows(
    lengths: Int[np.ndarray, "sample"], order: Int[np.ndarray, "sample"], room: int
) -> Rows:
    row_of = np.empty(len(order), dtype=np.int64)
    num_rows = 0
    for start in range(0, len(order), WINDOW):
        window = lengths[order[start : start + WINDOW]]
        rows, count = _best_fit(window, room)
        row_of[start : start + WINDOW] = rows + num_rows
        num_rows += count
    by_row = np.argsort(row_of, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=num_rows))])
    return Rows(order[by_row], offsets.astype(np.int64))


def _best_fit(
    lengths: Int[np.ndarray, "sample"], room: int
) -> tuple[Int[np.ndarray, "sample"], int]:
    """Return the row of every sample of a window, and the number of rows."""
    rows = np.empty(len(lengths), dtype=np.int64)
    # Open rows by the room they have left, ascending; `names` runs alongside.
    free: list[int] = []
    names: list[int] = []
    count = 0
    longest_first = np.argsort(-lengths, kind="stable")
    for sample, length in zip(longest_first.tolist(), lengths[longest_first].tolist(), strict=True):
        place = bisect_left(free, length)
        if place == len(free):
            left, name, count = room - length, count, count + 1
        else:
            left, name = free.pop(place) - length, names.pop(place)
        rows[sample] = name
        place = bisect_left(free, left)
        free.insert(place, left)
        names.insert(place, name)
    return rows, count


def filled_share(rows: Rows, lengths: Int[np.ndarray, "sample"], sequence_length: int) -> float:
    """Return tokens over places; one minus this is padding."""
    return float(lengths[rows.indices].sum()) / max(1, len(rows) * sequence_length)

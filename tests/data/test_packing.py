from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators.data import packing
from speculators.data.packing import Rows, filled_share, pack
from speculators.errors import DataError

lengths = st.lists(st.integers(1, 64), max_size=200)


def sharegpt_like(count: int) -> np.ndarray:
    draws = np.random.default_rng(0).lognormal(6.6, 1.0, count)
    return np.clip(draws, 8, 8192).astype(np.int64)


@given(lengths, st.integers(0, 5), st.booleans())
def test_every_sample_stands_in_exactly_one_row_that_holds_it(
    lengths: list[int], seed: int, shuffle: bool
) -> None:
    array = np.array(lengths, dtype=np.int64)
    rows = pack(array, 64, seed=seed, epoch=1, shuffle=shuffle)
    placed = np.concatenate([*rows, np.empty(0, dtype=np.int64)])
    assert sorted(placed.tolist()) == list(range(len(lengths)))
    for row in rows:
        assert 0 < array[row].sum() <= 64
    # Best fit leaves at most one row of a window less than half full.
    assert sum(array[row].sum() * 2 <= 64 for row in rows) <= 1


def test_order_is_a_function_of_seed_and_epoch() -> None:
    array = sharegpt_like(5000)
    first = pack(array, 8192, seed=1, epoch=2)
    assert np.array_equal(first.indices, pack(array, 8192, seed=1, epoch=2).indices)
    for seed, epoch in ((1, 3), (2, 2)):
        assert not np.array_equal(first.indices, pack(array, 8192, seed=seed, epoch=epoch).indices)


def test_fixed_rows_do_not_depend_on_seed_or_epoch() -> None:
    array = sharegpt_like(500)
    one = pack(array, 8192, seed=1, epoch=0, shuffle=False)
    other = pack(array, 8192, seed=2, epoch=7, shuffle=False)
    assert np.array_equal(one.indices, other.indices)
    assert np.array_equal(one.offsets, other.offsets)


@pytest.mark.parametrize(("count", "room"), [(2000, 8192), (20000, 8192), (20000, 3072)])
def test_rows_are_nearly_full(count: int, room: int) -> None:
    array = np.minimum(sharegpt_like(count), room)
    assert filled_share(pack(array, room, seed=0, epoch=0), array, room) >= 0.97


def test_large_sets_are_packed_in_seconds() -> None:
    array = sharegpt_like(800_000)
    start = time.perf_counter()
    rows = pack(array, 8192, seed=0, epoch=0)
    assert time.perf_counter() - start < 20
    assert filled_share(rows, array, 8192) > 0.99
    assert rows.indices.nbytes + rows.offsets.nbytes < 10 << 20


def test_rows_of_one_window_are_not_sorted_by_length() -> None:
    array = sharegpt_like(packing.WINDOW)
    first = [int(array[row].max()) for row in pack(array, 8192, seed=0, epoch=0)]
    assert abs(np.corrcoef(np.arange(len(first)), first)[0, 1]) < 0.2


def test_rows_behave_as_a_sequence() -> None:
    rows = Rows(np.array([4, 5, 6, 7]), np.array([0, 1, 3, 4]))
    assert [row.tolist() for row in rows] == [[4], [5, 6], [7]]
    assert rows[-1].tolist() == [7]
    assert [row.tolist() for row in rows[1:]] == [[5, 6], [7]]
    assert len(rows[3:]) == 0
    with pytest.raises(IndexError, match="row 3 of 3"):
        rows[3]


def test_no_samples_no_rows() -> None:
    assert len(pack(np.empty(0, dtype=np.int64), 64, seed=0, epoch=0)) == 0


def test_sample_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(DataError) as caught:
        pack(np.array([3, 65]), 64, seed=0, epoch=0)
    assert str(caught.value) == (
        "training.sequence_length=64: a sample has 65 tokens; prepare the data with this length"
    )


@given(lengths, st.integers(1, 7))
def test_ranks_share_the_rows(lengths: list[int], world_size: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    rows = pack(array, 64, seed=0, epoch=0)
    parts = [rows.of_rank(rank, world_size) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    assert (
        world_size * (len(parts[0]) - 1) < max(1, len(rows)) <= world_size * max(1, len(parts[0]))
    )
    placed = np.concatenate([part.indices for part in parts])
    assert sorted(placed.tolist()) == list(range(len(lengths)))
    for number, row in enumerate(rows):
        place = parts[number % world_size][number // world_size]
        assert np.array_equal(place, row)


def test_ranks_get_nearly_the_same_number_of_tokens() -> None:
    array = sharegpt_like(40_000)
    rows = pack(array, 8192, seed=0, epoch=0)
    tokens = [int(array[rows.of_rank(rank, 8).indices].sum()) for rank in range(8)]
    assert max(tokens) / min(tokens) < 1.01
    assert all(filled_share(rows.of_rank(rank, 8), array, 8192) > 0.97 for rank in range(8))

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators.data.split import group_prefixes, split_point, split_validation
from speculators.errors import DataError


def test_point_is_the_specified_hash() -> None:
    digest = hashlib.sha256(b"7abc").digest()
    assert split_point(7, "abc") == int.from_bytes(digest[:8], "big") / 2**64


def test_share_is_kept_and_stable_under_growth_and_order() -> None:
    ids = [f"conversation {i}" for i in range(4000)]
    held_out = split_validation(ids, ids, fraction=0.1, seed=0)
    assert 0.08 < held_out.mean() < 0.12
    assert (split_validation(ids[::-1], ids[::-1], fraction=0.1, seed=0) == held_out[::-1]).all()
    grown = split_validation(ids[:1000], ids[:1000], fraction=0.1, seed=0)
    assert (grown == held_out[:1000]).all()
    assert (split_validation(ids, ids, fraction=0.1, seed=1) != held_out).any()


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30)), min_size=1, max_size=40),
    st.floats(0.01, 0.99),
)
def test_nothing_stands_on_both_sides(rows: list[tuple[int, int]], fraction: float) -> None:
    conversations, samples = [str(a) for a, _ in rows], [str(b) for _, b in rows]
    try:
        held_out = split_validation(conversations, samples, fraction=fraction, seed=0)
    except DataError:
        return
    assert held_out.any()
    assert not held_out.all()
    for names in (conversations, samples):
        names = np.array(names)
        assert not set(names[held_out]) & set(names[~held_out])


def test_one_conversation_cannot_be_split() -> None:
    with pytest.raises(DataError) as caught:
        split_validation(["a", "a"], ["x", "y"], fraction=0.1, seed=0)
    assert str(caught.value) == (
        "training.validation_fraction=0.1: 1 distinct conversation(s) cannot be split: give at "
        "least 2, or data.validation_path=FILE"
    )


def test_conversations_that_are_the_same_throughout_cannot_be_split() -> None:
    with pytest.raises(DataError, match="2 distinct conversation"):
        split_validation(["a", "b"], ["x", "x"], fraction=0.5, seed=0)


def test_prefixes_are_grouped() -> None:
    rows = [[1, 2, 3], [1, 2], [9], [1, 2, 4], [1, 2, 3]]
    groups = group_prefixes([np.array(row, dtype=">u4").tobytes() for row in rows])
    assert groups == [1, 1, 2, 1, 1]

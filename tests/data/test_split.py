from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators.data.split import group_prefixes, split_point, split_validation
from speculators.errors import DataError


def held_out_of(*keys: Sequence[str | bytes], fraction: float, seed: int) -> np.ndarray:
    ids, *links = keys
    return split_validation([str(i) for i in ids], *links, fraction=fraction, seed=seed).validates


def test_point_is_the_specified_hash() -> None:
    digest = hashlib.sha256(b"7abc").digest()
    assert split_point(7, "abc") == int.from_bytes(digest[:8], "big") / 2**64


def test_share_is_kept_and_stable_under_growth_and_order() -> None:
    ids = [f"conversation {i}" for i in range(4000)]
    held_out = held_out_of(ids, ids, fraction=0.1, seed=0)
    assert 0.08 < held_out.mean() < 0.12
    assert (held_out_of(ids[::-1], ids[::-1], fraction=0.1, seed=0) == held_out[::-1]).all()
    grown = held_out_of(ids[:1000], ids[:1000], fraction=0.1, seed=0)
    assert (grown == held_out[:1000]).all()
    assert (held_out_of(ids, ids, fraction=0.1, seed=1) != held_out).any()


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30)), min_size=1, max_size=40),
    st.floats(0.01, 0.99),
)
def test_nothing_stands_on_both_sides(rows: list[tuple[int, int]], fraction: float) -> None:
    conversations, samples = [str(a) for a, _ in rows], [str(b) for _, b in rows]
    try:
        held_out = held_out_of(conversations, samples, fraction=fraction, seed=0)
    except DataError:
        return
    assert held_out.any()
    assert not held_out.all()
    for names in (conversations, samples):
        names = np.array(names)
        assert not set(names[held_out]) & set(names[~held_out])


# ---- groups -------------------------------------------------------------------------------------


def _pairs(ids: list[str]) -> list[str]:
    return [str(number // 2) for number in range(len(ids))]


def _greeting(ids: list[str]) -> list[str]:
    """A third of the conversations begin alike, the others each in their own way."""
    return ["hello" if number % 3 == 0 else name for number, name in enumerate(ids)]


def _trees(ids: list[str]) -> list[str]:
    """Paths of trees: groups of 1, 2, ... 8 conversations, again and again."""
    sizes = [1 + tree % 8 for tree in range(len(ids))]
    keys = [str(tree) for tree, size in enumerate(sizes) for _ in range(size)]
    return keys[: len(ids)]


GROUPINGS = {"pairs": _pairs, "a greeting": _greeting, "trees": _trees}


@pytest.mark.parametrize("grouping", GROUPINGS.values(), ids=GROUPINGS)
@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_share_is_the_fraction_whatever_the_groups(
    grouping: Callable[[list[str]], list[str]], fraction: float
) -> None:
    """Over many seeds the mean share is the fraction, within five standard errors."""
    ids = [f"conversation {number}" for number in range(160)]
    links = grouping(ids)
    shares = np.array(
        [held_out_of(ids, links, fraction=fraction, seed=seed).mean() for seed in range(40)]
    )
    error = shares.std() / np.sqrt(len(shares))
    assert abs(shares.mean() - fraction) < 5 * error
    # The rule this replaces, the smallest point of a group, misses by far.
    points = np.array([split_point(0, name) for name in ids])
    smallest = [points[[k == key for k in links]].min() for key in links]
    if grouping is not _pairs:
        assert np.mean(np.array(smallest) < fraction) > 1.3 * fraction


def test_data_of_which_half_begins_alike() -> None:
    """As FastChat's dummy conversations: two or three samples each, the first of a third is equal.

    The group of 501 of 1,000 samples would fill the validation alone: it trains, and twice as many
    of the others validate.
    """
    ids = [f"identity_{i}" for i in range(500) for _ in range(3 if i % 3 == 0 else 1)]
    ids += [name for name in ids if int(name.removeprefix("identity_")) % 3 == 1]
    alike = np.array([int(name.removeprefix("identity_")) % 3 == 0 for name in ids])
    shared = ["who are you" if a else f"{i}" for i, a in enumerate(alike.tolist())]
    shares = []
    for seed in range(12):
        split = split_validation(ids, shared, fraction=0.1, seed=seed)
        assert (split.num_groups, split.largest_group) == (334, 501)
        assert not split.validates[alike].any()
        shares.append(float(split.validates.mean()))
    assert 0.09 < np.mean(shares) < 0.11
    assert 0.05 < min(shares) < max(shares) < 0.15


def test_at_most_half_of_what_does_not_begin_alike_validates() -> None:
    ids = [str(number) for number in range(1000)]
    links = ["hello" if number < 950 else name for number, name in enumerate(ids)]
    split = split_validation(ids, links, fraction=0.1, seed=0)
    assert 10 < split.validates.sum() < 40


def test_groups_keep_their_side_when_they_grow() -> None:
    """Rows added later, numbered on, never move a group: its smallest id stays."""
    ids = [f"row_{number}" for number in range(3000)]
    tree = [str(number % 170) for number in range(len(ids))]
    whole = held_out_of(ids, tree, fraction=0.2, seed=3)
    for count in (400, 1000, 2999):
        part = held_out_of(ids[:count], tree[:count], fraction=0.2, seed=3)
        assert (part == whole[:count]).all()
    order = np.random.default_rng(0).permutation(len(ids))
    mixed = held_out_of([ids[i] for i in order], [tree[i] for i in order], fraction=0.2, seed=3)
    assert (mixed == whole[order]).all()


def test_two_groups_keep_the_larger_one_for_training() -> None:
    ids = [str(number) for number in range(40)]
    links = ["many"] * 38 + ["few"] * 2
    for seed in range(15):
        assert held_out_of(ids, links, fraction=0.001, seed=seed).sum() == 2
        assert held_out_of(ids, links, fraction=0.999, seed=seed).sum() == 2


def test_one_conversation_cannot_be_split() -> None:
    with pytest.raises(DataError) as caught:
        split_validation(["a", "a"], ["x", "y"], fraction=0.1, seed=0)
    assert str(caught.value) == (
        "training.validation_fraction=0.1: 1 distinct conversation(s) cannot be split: give at "
        "least 2, or data.validation_path=FILE"
    )


def test_conversations_that_are_the_same_throughout_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"2 distinct conversation\(s\), which all begin alike, "):
        split_validation(["a", "b"], ["x", "x"], fraction=0.5, seed=0)


def test_prefixes_are_grouped() -> None:
    rows = [[1, 2, 3], [1, 2], [9], [1, 2, 4], [1, 2, 3]]
    groups = group_prefixes([np.array(row, dtype=">u4").tobytes() for row in rows])
    assert groups == [1, 1, 2, 1, 1]

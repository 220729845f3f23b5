from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from speculators.verifier.padding import length_batches, pad_left, pad_right


@given(
    st.lists(st.integers(1, 50), max_size=40),
    st.none() | st.integers(1, 120),
    st.none() | st.integers(1, 8),
)
def test_batches_hold_everything_once_within_the_limits(
    lengths: list[int], max_tokens: int | None, max_rows: int | None
) -> None:
    batches = length_batches(lengths, max_tokens=max_tokens, max_rows=max_rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert max_tokens is None or padded <= max_tokens or len(batch) == 1
        assert max_rows is None or len(batch) <= max_rows


def test_no_limit_is_one_batch_and_one_token_is_one_each() -> None:
    assert length_batches([3, 1, 2]) == [[1, 2, 0]]
    assert length_batches([3, 1, 2], max_tokens=1) == [[1], [2], [0]]


def test_padding() -> None:
    rows = [torch.tensor([5, 6]), torch.tensor([7, 8, 9])]
    assert pad_right(rows).tolist() == [[5, 6, 6], [7, 8, 9]]
    tokens, present = pad_left([[5, 6], [7, 8, 9]])
    assert tokens.tolist() == [[0, 5, 6], [7, 8, 9]]
    assert present.tolist() == [[False, True, True], [True, True, True]]

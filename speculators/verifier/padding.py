"""Sequences of different lengths in one pass: which ones together, and how they are laid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def length_batches(
    lengths: Sequence[int], *, max_tokens: int | None = None, max_rows: int | None = None
) -> list[list[int]]:
    """Group sequences of similar length.

    Args:
        lengths: length of each sequence.
        max_tokens: most tokens of a batch, padding included; a longer sequence stands alone.
        max_rows: most sequences of a batch.

    Returns:
        Indices into `lengths`, shortest first; every index once.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        rows = len(batches[-1]) + 1 if batches else 0
        fits = rows > 0
        if max_tokens is not None:
            fits = fits and rows * lengths[index] <= max_tokens
        if max_rows is not None:
            fits = fits and rows <= max_rows
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def pad_right(rows: Sequence[Int[Tensor, "_"]]) -> Int[Tensor, "row token"]:
    """Lay sequences on the left of a grid. Padding repeats the last token of its row.

    A causal model cannot see it, and no model treats an ordinary token in a special way.
    """
    length = max(row.shape[0] for row in rows)
    return torch.stack([torch.cat([row, row[-1:].expand(length - row.shape[0])]) for row in rows])


def pad_left(
    rows: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, "row token"], Bool[Tensor, "row token"]]:
    """Lay sequences on the right of a grid, where generation goes on.

    Returns:
        Tokens with 0 at padding, and True where there is a token.
    """
    length = max(len(row) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    present = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, length - len(row) :] = torch.tensor(row, dtype=torch.int64)
        present[i, length - len(row) :] = True
    return tokens, present

"""FlexAttention's block mask from the bounds of the blocks, without evaluating the mask.

Every query sees two ranges of keys: tokens of its context, and slots of its block. Which tiles of
the query x key grid are touched or covered follows from these bounds alone. Work and memory grow
with queries + tiles; the grid itself (805 million entries at 8,192 tokens and 3,072 blocks of 8)
never exists. Inside a tile that is visible in part the kernel compares keys with the same bounds:
four comparisons an entry whatever the rule, so that all rules share one kernel.
"""

from __future__ import annotations

import inspect
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from speculators.attention.layout import BlockLayout, MaskRule
from speculators.attention.masks import MaskMod
from speculators.modules.transfer import send

TILE = 128


class KeyRanges(NamedTuple):
    """The keys every query sees, as two half-open ranges; a range may be empty (first >= end)."""

    context_first: Int[Tensor, "query"]
    context_end: Int[Tensor, "query"]
    own_first: Int[Tensor, "query"]
    own_end: Int[Tensor, "query"]


def block_mask(
    layout: BlockLayout, rule: MaskRule, device: torch.device | str = "cpu"
) -> BlockMask:
    """Return what `create_block_mask(anchored_block_mask(layout, rule), ...)` returns.

    Its predicate is another one that says the same of every query and key, see `range_mask`.

    Args:
        layout: blocks of a packed row, on the host.
        rule: window and causality.
        device: where the mask is used.
    """
    ranges = key_ranges(layout, rule)
    partial, full = tile_grids(ranges, layout.sequence_length + layout.num_slots)
    partial_count, partial_tiles = _ordered(partial)
    full_count, full_tiles = _ordered(full)
    return BlockMask.from_kv_blocks(
        send(partial_count, device),
        send(partial_tiles, device),
        send(full_count, device),
        send(full_tiles, device),
        BLOCK_SIZE=TILE,
        mask_mod=range_mask(KeyRanges(*(send(bound.int(), device) for bound in ranges))),
        seq_lengths=(layout.num_queries, layout.sequence_length + layout.num_slots),
    )


def key_ranges(layout: BlockLayout, rule: MaskRule) -> KeyRanges:
    """Return the keys each query sees, numbered as `BlockLayout` says."""
    first, end = layout.context_bounds(rule)
    own_first, own_end = layout.slot_bounds(rule)
    own = layout.sequence_length + layout.block_size * torch.arange(layout.num_blocks)[:, None]
    ranges = (first, end[:, None].expand_as(first), own + own_first, own + own_end)
    return KeyRanges(*(bound.flatten() for bound in ranges))


def range_mask(ranges: KeyRanges) -> MaskMod:
    """Return a FlexAttention `mask_mod` that compares keys with bounds (batch, head ignored)."""
    context_first, context_end, own_first, own_end = ranges

    def in_ranges(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        context = (key >= context_first[query]) & (key < context_end[query])
        return context | ((key >= own_first[query]) & (key < own_end[query]))

    return inspect.unwrap(in_ranges)  # FlexAttention traces plain functions, no decorated ones


def tile_grids(
    ranges: KeyRanges, num_keys: int
) -> tuple[Bool[Tensor, "query_tile key_tile"], Bool[Tensor, "query_tile key_tile"]]:
    """Return the tiles that are visible in part, and those visible as a whole."""
    starts = torch.cat([ranges.context_first, ranges.own_first])
    ends = torch.cat([ranges.context_end, ranges.own_end])
    num_queries = len(ranges.own_end)
    query_tile = (torch.arange(num_queries) // TILE).repeat(2)
    shape = (-(-num_queries // TILE), -(-num_keys // TILE))
    empty = ends <= starts
    touched = _count(query_tile, starts // TILE, torch.where(empty, 0, -(-ends // TILE)), shape)
    covered = _count(query_tile, -(-starts // TILE), ends // TILE, shape)
    full = covered == TILE
    return (touched > 0) & ~full, full


def _count(row: Tensor, first: Tensor, end: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return for each tile how many of the ranges [first, end) of its row contain it."""
    steps = torch.zeros(shape[0], shape[1] + 1, dtype=torch.int32)
    weight = (first < end).to(torch.int32)
    width = shape[1] + 1
    steps.view(-1).index_add_(0, row * width + torch.where(weight > 0, first, 0), weight)
    steps.view(-1).index_add_(0, row * width + torch.where(weight > 0, end, 0), -weight)
    return steps.cumsum(1)[:, :-1]


def _ordered(grid: Tensor) -> tuple[Int[Tensor, "1 1 query_tile"], Int[Tensor, "1 1 query_tile n"]]:
    """Return per row the number of true columns, and all columns with the true ones first."""
    columns = torch.argsort(grid.to(torch.int8), dim=-1, descending=True, stable=True)
    return grid.sum(-1).to(torch.int32)[None, None], columns.to(torch.int32)[None, None]

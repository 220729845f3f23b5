"""FlexAttention's block mask from the bounds of the blocks, without evaluating the mask.

Every query sees two ranges of keys: tokens of its context, and slots of its block. Which tiles of
the query x key grid are touched or covered follows from these bounds alone. Work and memory grow
with queries + tiles; the grid itself (805 million entries at 8,192 tokens and 3,072 blocks of 8)
never exists.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from speculators.attention.layout import BlockLayout, MaskRule
from speculators.attention.masks import MaskMod, anchored_block_mask
from speculators.modules.transfer import send

TILE = 128


def block_mask(
    layout: BlockLayout,
    rule: MaskRule,
    device: torch.device | str = "cpu",
    mask_mod: MaskMod | None = None,
) -> BlockMask:
    """Return what `create_block_mask(anchored_block_mask(layout, rule), ...)` returns.

    Args:
        layout: blocks of a packed row, on the host.
        rule: window and causality.
        device: where the mask is used.
        mask_mod: the predicate for partly visible tiles, if it exists already.
    """
    partial, full = tile_grids(layout, rule)
    partial_count, partial_tiles = _ordered(partial)
    full_count, full_tiles = _ordered(full)
    return BlockMask.from_kv_blocks(
        send(partial_count, device),
        send(partial_tiles, device),
        send(full_count, device),
        send(full_tiles, device),
        BLOCK_SIZE=TILE,
        mask_mod=mask_mod or anchored_block_mask(layout.to(device), rule),
        seq_lengths=(layout.num_queries, layout.sequence_length + layout.num_slots),
    )


def tile_grids(
    layout: BlockLayout, rule: MaskRule
) -> tuple[Bool[Tensor, "query_tile key_tile"], Bool[Tensor, "query_tile key_tile"]]:
    """Return the tiles that are visible in part, and those visible as a whole."""
    first, end = layout.context_bounds(rule)
    own_first, own_end = layout.slot_bounds(rule)
    own = layout.sequence_length + layout.block_size * torch.arange(layout.num_blocks)[:, None]
    starts = torch.cat([first.flatten(), (own + own_first).flatten()])
    ends = torch.cat([end[:, None].expand_as(first).flatten(), (own + own_end).flatten()])
    query_tile = (torch.arange(layout.num_queries) // TILE).repeat(2)

    queries, keys = layout.num_queries, layout.sequence_length + layout.num_slots
    shape = (-(-queries // TILE), -(-keys // TILE))
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

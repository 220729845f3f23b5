"""Consecutive blocks of one document share their context: the plan of the structured backend.

Blocks are sorted by anchor, so the tokens visible to a run of blocks form one slice
`[low, high)` of the row. Only the slice's ragged edges need a bias; between them every slot sees
every token. Cost and memory are proportional to what is visible, never to the whole grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from speculators.attention.layout import BlockLayout, MaskRule
from speculators.modules.transfer import send

_MAX_SPAN_TOKENS = 64
_MAX_SLOTS = 512


@dataclass(frozen=True)
class Edge:
    """Columns of a segment's context that not every slot sees.

    Attributes:
        start: first column, counted from the segment's `low`.
        stop: one past the last column.
        bias: 0 where visible, -inf elsewhere; `block` is 1-sized where all slots agree.
    """

    start: int
    stop: int
    bias: Float[Tensor, "anchor block column"]


@dataclass(frozen=True)
class Segment:
    """Blocks `[first, last)` of one document and the context they share.

    Attributes:
        first: first block.
        last: one past the last block.
        low: first token some slot sees.
        high: one past the last token some slot sees.
        edges: disjoint ragged parts of `[low, high)`.
    """

    first: int
    last: int
    low: int
    high: int
    edges: tuple[Edge, ...]


@dataclass(frozen=True)
class SegmentPlan:
    """All segments with context, and the bias inside a block.

    Attributes:
        segments: ascending, disjoint; blocks without context are in none.
        own_bias: 0 or -inf between queries and slots of one block; None when all see each other.
    """

    segments: tuple[Segment, ...]
    own_bias: Float[Tensor, "query block"] | None


def plan_segments(
    layout: BlockLayout, rule: MaskRule, device: torch.device | str = "cpu"
) -> SegmentPlan:
    """Split the blocks of `layout` (host tensors) into segments; biases are put on `device`."""
    first, end = layout.context_bounds(rule)
    slots_agree = rule.window is None
    if slots_agree:
        first = first[:, :1]
    groups = _groups(layout.block_documents().tolist(), first, end, layout.queries_per_block)
    segments = tuple(_segment(i, j, first[i:j], end[i:j], device) for i, j in groups)
    return SegmentPlan(segments, _own_bias(layout, rule, device))


def _groups(
    documents: list[int], first: Tensor, end: Tensor, queries: int
) -> list[tuple[int, int]]:
    """Return runs of blocks with context, of one document, and with anchors close together.

    Every block of a run is computed against the whole run's context, so the span bounds the
    waste, while longer runs amortise the cost of a call.
    """
    starts, ends = first.amin(1).tolist(), end.tolist()
    max_blocks = max(1, _MAX_SLOTS // queries)
    groups: list[tuple[int, int]] = []
    open_at = -1
    for i, (document, start, stop) in enumerate(zip(documents, starts, ends, strict=True)):
        if start >= stop:
            open_at = -1
            continue
        joins = (
            open_at >= 0
            and documents[open_at] == document
            and stop - ends[open_at] <= _MAX_SPAN_TOKENS
            and i - open_at < max_blocks
        )
        if joins:
            groups[-1] = (open_at, i + 1)
        else:
            open_at = i
            groups.append((i, i + 1))
    return groups


def _segment(i: int, j: int, first: Tensor, end: Tensor, device: torch.device | str) -> Segment:
    """Build the segment of blocks [i, j) from their bounds."""
    low, high = int(first.min()), int(end.max())
    all_from = min(int(first.max()), high)
    all_until = max(int(end.min()), low)
    ragged = [(low, all_from), (all_until, high)] if all_from < all_until else [(low, high)]
    edges = tuple(
        Edge(a - low, b - low, send(_bias(first, end, a, b), device)) for a, b in ragged if a < b
    )
    return Segment(i, j, low, high, edges)


def _bias(first: Tensor, end: Tensor, start: int, stop: int) -> Tensor:
    """Return 0 / -inf for tokens [start, stop), shape `anchor block column`."""
    token = torch.arange(start, stop)
    return _as_bias((token >= first[..., None]) & (token < end[:, None, None]))


def _own_bias(
    layout: BlockLayout, rule: MaskRule, device: torch.device | str
) -> Float[Tensor, "query block"] | None:
    """Return the bias between slots of one block, or None when nothing is hidden."""
    first, end = layout.slot_bounds(rule)
    key = torch.arange(layout.block_size)
    visible = (key >= first[:, None].cpu()) & (key < end[:, None].cpu())
    return None if bool(visible.all()) else send(_as_bias(visible), device)


def _as_bias(visible: Bool[Tensor, "..."]) -> Float[Tensor, "..."]:
    return torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)

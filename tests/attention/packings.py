"""Random packed rows with blocks, and the mask written down again from its definition."""

from __future__ import annotations

import torch
from torch import Tensor

from speculators.attention.layout import BlockLayout, MaskRule

RULES = (
    MaskRule(),
    MaskRule(window=1),
    MaskRule(window=4),
    MaskRule(window=4, causal=True),
    MaskRule(window=50),
    MaskRule(causal=True),
)


def random_layout(seed: int, *, max_tokens: int = 120, max_block: int = 9) -> BlockLayout:
    """Return documents of random lengths, padding, random anchors (also at the ends), filling.

    With odd seeds the first slots of a block are keys only."""
    g = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=g))

    length, size = draw(3, max_tokens), draw(2, max_block)
    documents: list[int] = []
    positions: list[int] = []
    while len(documents) < length - draw(0, 20):
        count = min(draw(1, 40), length - len(documents))
        documents += [documents[-1] + 1 if documents else 0] * count
        positions += range(count)
    padding = length - len(documents)
    count = draw(0, len(documents) + 1)
    anchors = torch.randperm(len(documents), generator=g)[:count].sort().values
    filling = draw(0 if count else 1, 4)
    first_query = draw(0, size) if seed % 2 else 0
    return BlockLayout(
        torch.cat([anchors, torch.zeros(filling, dtype=torch.int64)]),
        count,
        torch.tensor(documents + [-1] * padding),
        torch.tensor(positions + [0] * padding),
        size,
        first_query,
    )


def oracle_mask(layout: BlockLayout, rule: MaskRule) -> Tensor:
    """DFlash specification, section 5, entry by entry."""
    documents, positions = layout.document_ids.tolist(), layout.position_ids.tolist()
    length, size = len(documents), layout.block_size
    window = rule.window or 10**9
    mask = torch.zeros(layout.num_queries, length + layout.num_slots, dtype=torch.bool)
    for j, a in enumerate(layout.anchors.tolist()):
        for query, k in enumerate(range(layout.first_query, size)):
            row = mask[j * layout.queries_per_block + query]
            if j < layout.num_valid:
                for p in range(a):
                    near = positions[a] + k - positions[p] < window
                    row[p] = documents[p] == documents[a] >= 0 and near
            for m in range(size):
                row[length + j * size + m] = (not rule.causal or m <= k) and abs(k - m) < window
    return mask


def dense_attention(
    q: Tensor, kc: Tensor, vc: Tensor, kb: Tensor, vb: Tensor, mask: Tensor
) -> Tensor:
    """Plain softmax attention over the whole grid."""
    n, size, heads, dim = q.shape
    groups = heads // kb.shape[2]
    keys = torch.cat([kc, kb.flatten(0, 1)]).repeat_interleave(groups, 1)
    values = torch.cat([vc, vb.flatten(0, 1)]).repeat_interleave(groups, 1)
    scores = torch.einsum("qhd,khd->hqk", q.flatten(0, 1), keys) * dim**-0.5
    p = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", p, values).view(n, size, heads, dim)


Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def random_inputs(
    layout: BlockLayout, heads: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> Inputs:
    """Return q, k_context, v_context, k_block, v_block that want gradients."""
    g = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dim, generator=g, dtype=dtype).requires_grad_()

    blocks, length = (layout.num_blocks, layout.block_size), layout.sequence_length
    queries = (layout.num_blocks, layout.queries_per_block)
    context = [draw(length, kv_heads) for _ in range(2)]
    own = [draw(*blocks, kv_heads) for _ in range(2)]
    return draw(*queries, heads), context[0], context[1], own[0], own[1]

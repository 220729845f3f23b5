"""The mask of anchored blocks, as a predicate over (query, key). Every backend obeys this one.

    key        0 1 2 3 4 | 5 6 7 | slots of block 0 | slots of block 1
    document   0 0 0 0 0 | 1 1 1 |
    block 0,   x x . . . | . . . |      x x x       |      . . .        anchor 2
    block 1,   . . . . . | x . . |      . . .       |      x x x        anchor 6

A slot sees the tokens of its document strictly before the anchor (the anchor's own state does not
exist yet when the block is drafted; its token enters as slot 0) and the slots of its own block.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from speculators.attention.layout import BlockLayout, MaskRule

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def anchored_block_mask(layout: BlockLayout, rule: MaskRule) -> MaskMod:
    """Return a FlexAttention `mask_mod` for the blocks of `layout` (specification, section 5).

    Args:
        layout: blocks and documents; its tensors are captured, on their device.
        rule: window and causality inside the block.

    Returns:
        A function of (batch, head, query index, key index); indices broadcast. Batch and head
        are ignored. Queries are numbered block by block; keys as `BlockLayout` says.
    """
    size, length = layout.block_size, layout.sequence_length
    asking, first = layout.queries_per_block, layout.first_query
    anchors, documents, positions = layout.anchors, layout.document_ids, layout.position_ids
    block_documents = layout.block_documents()
    anchor_positions = positions[anchors]

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        block, slot = query // asking, first + query % asking
        is_context = key < length
        token = torch.where(is_context, key, 0)
        same_document = documents[token] == block_documents[block]
        before_anchor = token < anchors[block]
        context = is_context & same_document & before_anchor

        key_slot = (key - length) % size
        own_block = ~is_context & ((key - length) // size == block)
        if rule.window is not None:
            distance = anchor_positions[block] + slot - positions[token]
            context = context & (distance < rule.window)
            own_block = own_block & ((slot - key_slot).abs() < rule.window)
        if rule.causal:
            own_block = own_block & (key_slot <= slot)
        return context | own_block

    plain = inspect.unwrap(mask_mod)  # FlexAttention traces plain functions, no decorated ones
    asked = f"_from_{first}" if first else ""
    plain.__name__ = f"anchored_blocks_of_{size}{asked}_window_{rule.window}_causal_{rule.causal}"
    return plain


def dense_mask(layout: BlockLayout, rule: MaskRule) -> Bool[Tensor, "query key"]:
    """Evaluate the mask on the whole grid. Memory is query x key: for tests and pictures."""
    device = layout.anchors.device
    query = torch.arange(layout.num_queries, device=device)[:, None]
    key = torch.arange(layout.sequence_length + layout.num_slots, device=device)[None]
    zero = torch.zeros((), dtype=torch.int64, device=device)
    return anchored_block_mask(layout, rule)(zero, zero, query, key)

"""What a training pass of DFlash costs: blocks through the layers, context once per layer."""

from __future__ import annotations

from speculators.algorithms.cost import (
    LayerRows,
    StepCost,
    Workload,
    computed_again,
    dense_cost,
    head_cost,
    layer_cost,
)
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.modules.decoder import LayerSizes


def dflash_cost(
    config: DFlashConfig,
    sizes: LayerSizes,
    vocabulary: int,
    terms: dict[str, float],
    work: Workload,
    *,
    head_width: int | None = None,
    trained_head: bool = False,
) -> StepCost:
    """Return the cost of one row.

    The first layer projects one row per anchor and one that all other slots share, the last one
    finishes only the slots that are supervised.

    Args:
        config: resolved settings.
        sizes: widths of a draft layer.
        vocabulary: rows of the draft head.
        terms: active terms of the loss.
        work: the row.
        head_width: width of the head's input; None: the hidden size.
        trained_head: whether the head has a gradient.
    """
    hidden, length, item = sizes.hidden_size, work.sequence_length, work.item
    anchors = config.max_anchors
    if not work.accelerator:
        anchors = min(anchors, work.num_supervised)
    slots = anchors * config.block_size
    kept = work.supervised_slots(min(anchors, work.num_supervised), config.block_size - 1)
    states = len(config.target_layer_ids or ())
    cost = dense_cost(
        "context", length, states * hidden, hidden,
        kept_bytes=length * hidden * (4 + item), input_gradient=False,
    )  # fmt: skip
    window = config.sliding_window or length
    sliding = config.num_sliding_layers or 0
    after = StepCost(kept_bytes={"norms": kept * hidden * 4}) + head_cost(
        kept, head_width or hidden, vocabulary, terms, work,
        trained=trained_head, teacher_width=hidden,
    )  # fmt: skip
    for index in range(config.num_layers):
        visible = min(work.visible_tokens, window if index < sliding else length)
        rows = LayerRows(
            slots=slots,
            context=length,
            visible=visible,
            own=config.block_size,
            projected=anchors + 1 if index == 0 else None,
            finished=kept if index + 1 == config.num_layers else None,
        )
        layer = layer_cost(sizes, rows, work)
        if config.activation_checkpointing:
            entering = (rows.projected or slots) * hidden * item
            outside = layer_cost(sizes, LayerRows(0, length, 0, 0), work)
            layer = computed_again(layer, entering, outside=outside, gone=after.kept)
        cost += layer
    rotations = (slots + length) * sizes.head_dim * item
    rotations *= 2 * config.num_layers if work.bfloat16 else 1
    return cost + StepCost(kept_bytes={"rotation": rotations}) + after

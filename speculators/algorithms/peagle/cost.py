"""What a training pass of P-EAGLE costs: the base once, and blocks through the layers."""

from __future__ import annotations

from speculators.algorithms.cost import LayerRows as Rows
from speculators.algorithms.cost import (
    StepCost,
    Workload,
    computed_again,
    head_cost,
    layer_cost,
)
from speculators.algorithms.eagle3.cost import base_cost
from speculators.algorithms.eagle3.fused_config import LayerType
from speculators.algorithms.peagle.config import PEagleConfig
from speculators.modules.decoder import LayerSizes


def peagle_cost(
    config: PEagleConfig, sizes: LayerSizes, vocabulary: int, work: Workload
) -> StepCost:
    """Return the cost of one row.

    Args:
        config: resolved settings.
        sizes: widths of a draft layer.
        vocabulary: rows of the draft head.
        work: the row.
    """
    hidden, size = sizes.hidden_size, config.num_draft_tokens
    starts = min(config.max_anchors, work.num_supervised)
    slots = (config.max_anchors if work.accelerator else starts) * size
    visible = min(work.visible_tokens, config.sliding_window or work.sequence_length)
    cost = base_cost(config, sizes, work, fused_norm=config.norm_before_fc)
    norms = config.layer_type is LayerType.qwen3
    for index in range(config.num_layers):
        width = hidden if index else 2 * hidden
        fresh = slots * (size - 1) / size if size > 1 else slots
        rows = Rows(slots, 0.0, visible, size, projected=fresh if not index else slots)
        layer = layer_cost(sizes, rows, work, input_size=width, head_norms=norms)
        if config.activation_checkpointing:
            layer = computed_again(layer, slots * width * work.item)
        cost += layer
    kept = work.supervised_slots(starts, size)
    cost += StepCost(kept_bytes={"norms": slots * hidden * (4 + work.item)})
    return cost + head_cost(
        kept, hidden, vocabulary, config.loss.active(), work, trained=config.train_lm_head
    )

"""What a training pass of Eagle-3 costs: the base once, then every step of the chains."""

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
from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.fused_config import FusedLayersConfig, LayerType
from speculators.modules.decoder import LayerSizes


def eagle3_cost(
    config: Eagle3Config, sizes: LayerSizes, vocabulary: int, work: Workload
) -> StepCost:
    """Return the cost of one row: a chain starts at every supervised token.

    Args:
        config: resolved settings.
        sizes: widths of a draft layer.
        vocabulary: rows of the draft head.
        work: the row.
    """
    hidden, chains = sizes.hidden_size, work.num_supervised
    cost = base_cost(config, sizes, work, fused_norm=config.fc_norm or config.norm_before_fc)
    visible = min(work.visible_tokens, config.sliding_window or work.sequence_length)
    norms = config.layer_type is LayerType.qwen3
    for index in range(config.num_layers):
        width, last = (hidden if index else 2 * hidden), index + 1 == config.num_layers
        for step in range(0 if last else 1, config.ttt_steps):
            rows = LayerRows(chains, 0.0, visible, own=step + 1, own_keys=False)
            fresh = _keys(sizes, chains if step else 0, width, norms=norms)
            chain = layer_cost(sizes, rows, work, input_size=width, head_norms=norms) + fresh
            if config.activation_checkpointing and step:
                kept = chains * (2 * hidden + 2 * _kv(sizes)) * work.item
                chain = computed_again(chain, kept)
            cost += chain
    cost += StepCost(kept_bytes={"norms": config.ttt_steps * chains * hidden * (4 + work.item)})
    slots = work.supervised_slots(chains, config.ttt_steps)
    return cost + head_cost(
        slots, hidden, vocabulary, config.loss.active(), work, trained=config.train_lm_head
    )


def base_cost(
    config: FusedLayersConfig, sizes: LayerSizes, work: Workload, *, fused_norm: bool
) -> StepCost:
    """Return the cost of the rows all drafts start from and see: whole layers but the last.

    Of the last layer they need keys and values only.

    Args:
        config: resolved settings.
        sizes: widths of a draft layer.
        work: the row.
        fused_norm: whether states are normed before they are fused.
    """
    hidden, length = sizes.hidden_size, work.sequence_length
    states, norm = len(config.target_layer_ids or ()), hidden * (4 + work.item)
    cost = dense_cost(
        "context", length, states * hidden, hidden,
        kept_bytes=length * states * norm if fused_norm else 0.0, input_gradient=False,
    )  # fmt: skip
    visible = min(work.visible_tokens, config.sliding_window or length)
    norms = config.layer_type is LayerType.qwen3
    for index in range(config.num_layers):
        last = index + 1 == config.num_layers
        asking = 0.0 if last else float(length)
        rows = LayerRows(asking, length, visible, own=1, own_keys=False)
        width = hidden if index else 2 * hidden
        cost += layer_cost(sizes, rows, work, input_size=width, head_norms=norms)
        if last:  # normed all the same, to be projected to keys
            cost += StepCost(kept_bytes={"projections": length * norm * width / hidden})
    return cost


def _kv(sizes: LayerSizes) -> int:
    return sizes.num_key_value_heads * sizes.head_dim


def _keys(sizes: LayerSizes, rows: int, width: int, *, norms: bool) -> StepCost:
    """Return keys and values of a step's own rows, whose input is normed already."""
    flops = 4.0 * rows * width * _kv(sizes)
    kept = rows * _kv(sizes) * 4.0 if norms else 0.0
    return StepCost({"projections": flops}, {"projections": 2 * flops}, {"projections": kept})

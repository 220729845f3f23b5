"""What drafters with a fused first layer compute with, and what the engine makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.conventions import Conventions, served_conventions, served_windows
from speculators.algorithms.eagle3.fused_config import FusedLayersConfig, LayerType
from speculators.algorithms.eagle3.network import FusedNetwork
from speculators.algorithms.serving import need
from speculators.attention.layout import MaskRule

_THETA = {LayerType.llama.value: 10_000.0, LayerType.qwen3.value: 1_000_000.0}
"""What vLLM takes for a rotary embedding without `rope_theta`, by kind of layer."""


def fused_conventions(
    network: FusedNetwork,
    config: FusedLayersConfig,
    num_draft_tokens: int,
    *,
    mask_token_id: int | None = None,
    switches: Mapping[str, Any] | None = None,
) -> Conventions:
    """Return what a drafter computes with; all of its layers are causal.

    Args:
        network: read as it is.
        config: its settings.
        num_draft_tokens: tokens of one proposal.
        mask_token_id: of slots to be filled.
        switches: those of the algorithm alone.
    """
    return Conventions(
        layer_ids=tuple(config.target_layer_ids or ()),
        num_draft_tokens=num_draft_tokens,
        rules=(MaskRule(config.sliding_window, causal=True),) * len(network.layers),
        rope=tuple(network.rope_frequencies.tolist()),
        rms_norm_eps=network.norm.eps,
        mask_token_id=mask_token_id,
        switches={
            "layer_type": (config.layer_type or LayerType.llama).value,
            "norm_before_residual": config.norm_before_residual,
            "norm_before_fc": config.norm_before_fc,
            **(switches or {}),
        },
    )


def engine_fused_conventions(
    serving: Mapping[str, Any],
    *,
    norm_before_residual: bool,
    mask_token_id: int | None = None,
    switches: Mapping[str, Any] | None = None,
) -> Conventions:
    """Return what vLLM 0.32 makes of a `config.json`.

    Args:
        serving: the file.
        norm_before_residual: what it takes where the file is silent.
        mask_token_id: of slots to be filled.
        switches: those of the algorithm alone.

    Raises:
        CheckpointError: a key it needs is missing.
    """
    layer = need(serving, "transformer_layer_config")
    kind = layer.get("model_type", LayerType.llama.value)
    slides = kind == LayerType.qwen3.value  # its llama class ignores windows
    rules = [MaskRule(w if slides else None, causal=True) for w in served_windows(layer)]
    return served_conventions(
        serving,
        need(serving, "eagle_aux_hidden_state_layer_ids"),
        rules,
        default_theta=_THETA.get(kind, _THETA[LayerType.llama.value]),
        mask_token_id=mask_token_id,
        switches={
            "layer_type": kind,
            "norm_before_residual": bool(serving.get("norm_before_residual", norm_before_residual)),
            "norm_before_fc": bool(serving.get("norm_before_fc", False)),
            **(switches or {}),
        },
    )

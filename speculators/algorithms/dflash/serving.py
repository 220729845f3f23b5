"""`config.json` of a DFlash checkpoint, both ways (checkpoint specification, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speculators.algorithms.conventions import Conventions, served_conventions, served_windows
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.serving import (
    common_config,
    layer_config,
    need,
    read_common,
    read_num_draft_tokens,
    read_sliding,
    read_training,
    sliding_config,
)
from speculators.attention.layout import MaskRule
from speculators.errors import CheckpointError
from speculators.verifier.spec import VerifierSpec

THETA = 1_000_000.0
"""What vLLM takes for a rotary embedding without `rope_theta`."""

TRAINED_WITH = (
    "max_anchors",
    "anchor_strategy",
    "loss",
    "ce_labels",
    "position_weights",
    "loss_decay_gamma",
    "dpace_alpha",
    "normalization",
    "input_noise",
    "activation_checkpointing",
)
"""Settings kept in the checkpoint that serving does not need."""


def serving_config(
    config: DFlashConfig, spec: VerifierSpec, trained_with: Sequence[str] = TRAINED_WITH
) -> dict[str, Any]:
    """Return what vLLM needs to serve the drafter, and how it was trained.

    Args:
        config: resolved settings.
        spec: the verifier.
        trained_with: settings kept beside what serving needs.
    """
    sliding = config.num_sliding_layers or 0
    layer = layer_config(config, spec, "qwen3")
    layer |= sliding_config(config.num_layers, sliding, config.sliding_window)
    common = common_config(
        config,
        spec,
        architecture="DFlashDraftModel",
        num_draft_tokens=config.block_size - 1,
        layer=layer,
        trained_with=trained_with,
    )
    return common | {
        "aux_hidden_state_layer_ids": list(config.target_layer_ids or ()),
        "block_size": config.block_size,
        "mask_token_id": config.mask_token_id,
        "sample_from_anchor": False,
        # vLLM applies this to every layer, full ones too.
        "sliding_window_non_causal": not config.sliding_causal,
    }


def config_from_serving(serving: Mapping[str, Any]) -> DFlashConfig:
    """Rebuild the resolved settings from `config.json`.

    Raises:
        CheckpointError: a key is missing or has a value this code cannot run.
    """
    return DFlashConfig(
        **read_common(serving, "dflash"),
        **read_block(serving),
        **read_training(serving, DFlashConfig(), TRAINED_WITH),
    )


def read_block(serving: Mapping[str, Any]) -> dict[str, Any]:
    """Return layers read, block and windows, by field of `DFlashConfig`.

    Raises:
        CheckpointError: a key is missing or has a value this code cannot run.
    """
    if serving.get("sample_from_anchor"):
        raise CheckpointError(
            "config.json: sample_from_anchor=true: slots predict the token at their own position "
            "here; a drafter trained the other way cannot be run"
        )
    layer = need(serving, "transformer_layer_config")
    return {
        "target_layer_ids": list(need(serving, "aux_hidden_state_layer_ids")),
        "block_size": serving.get("block_size") or read_num_draft_tokens(serving) + 1,
        "mask_token_id": need(serving, "mask_token_id"),
        **_causality(serving, layer),
    }


def engine_conventions(
    serving: Mapping[str, Any], *, sliding_is_causal: bool = False
) -> Conventions:
    """Return what vLLM 0.32 makes of the file.

    Args:
        serving: `config.json`.
        sliding_is_causal: layers that slide are causal and others are not; otherwise one key of the
            file decides for all of them.

    Raises:
        CheckpointError: a key it needs is missing.
    """
    windows = served_windows(need(serving, "transformer_layer_config"))
    one_for_all = not serving.get("sliding_window_non_causal", True)
    causal = [w is not None if sliding_is_causal else one_for_all for w in windows]
    return served_conventions(
        serving,
        need(serving, "aux_hidden_state_layer_ids"),
        [MaskRule(*rule) for rule in zip(windows, causal, strict=True)],
        default_theta=THETA,
        mask_token_id=need(serving, "mask_token_id"),
    )


def _causality(serving: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Read windows and causality (DFlash specification, section 5.1)."""
    sliding, window = read_sliding(layer)
    causal = not serving.get("sliding_window_non_causal", True)
    if causal and 0 < sliding < layer["num_hidden_layers"]:
        raise CheckpointError(
            "config.json: sliding_window_non_causal=false with full and sliding layers: the "
            "engine would make the full layers causal too, which no training did"
        )
    # The public trainer writes false for drafters of full layers, which it trains in both
    # directions; so only sliding layers are taken to be causal.
    return {
        "sliding_window": window,
        "num_sliding_layers": sliding,
        "sliding_causal": causal and sliding > 0,
    }

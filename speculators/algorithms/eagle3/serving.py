"""`config.json` of an Eagle-3 checkpoint, both ways (checkpoint specification, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.conventions import Conventions
from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.fused_config import FusedLayersConfig, LayerType
from speculators.algorithms.eagle3.fused_conventions import engine_fused_conventions
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
from speculators.errors import CheckpointError
from speculators.verifier.spec import VerifierSpec

_NUM_STATES = 3
TRAINED_WITH = (
    "ttt_steps",
    "ttt_decay",
    "ttt_tokens",
    "loss",
    "ce_labels",
    "input_noise",
    "train_lm_head",
    "activation_checkpointing",
)
"""Settings kept in the checkpoint that serving does not need."""


def serving_config(config: Eagle3Config, spec: VerifierSpec) -> dict[str, Any]:
    """Return what vLLM needs to serve the drafter, and how it was trained.

    Args:
        config: resolved settings.
        spec: the verifier.
    """
    common = common_config(
        config,
        spec,
        architecture="Eagle3DraftModel",
        num_draft_tokens=config.num_draft_tokens,
        layer=fused_layer_config(config, spec),
        trained_with=TRAINED_WITH,
    )
    return common | {
        **fused_keys(config),
        "fc_norm": config.fc_norm,
        "norm_output": config.norm_output,
    }


def config_from_serving(serving: Mapping[str, Any]) -> Eagle3Config:
    """Rebuild the resolved settings from `config.json`.

    Raises:
        CheckpointError: a key is missing or has a value this code cannot run.
    """
    return Eagle3Config(
        **read_common(serving, "eagle3"),
        **read_fused(serving, norm_before_residual=True),
        num_draft_tokens=read_num_draft_tokens(serving),
        fc_norm=bool(serving.get("fc_norm", False)),
        norm_output=bool(serving.get("norm_output", False)),
        **read_training(serving, Eagle3Config(), TRAINED_WITH),
    )


def engine_conventions(serving: Mapping[str, Any]) -> Conventions:
    """Return what vLLM 0.32 makes of the file.

    Raises:
        CheckpointError: a key it needs is missing.
    """
    more = {key: bool(serving.get(key, False)) for key in ("fc_norm", "norm_output")}
    return engine_fused_conventions(serving, norm_before_residual=True, switches=more)


def fused_keys(config: FusedLayersConfig) -> dict[str, Any]:
    """Return the keys of every drafter that fuses states before its first layer."""
    return {
        "eagle_aux_hidden_state_layer_ids": list(config.target_layer_ids or ()),
        "norm_before_residual": config.norm_before_residual,
        "norm_before_fc": config.norm_before_fc,
        "embed_requires_grad": False,
    }


def fused_layer_config(config: FusedLayersConfig, spec: VerifierSpec) -> dict[str, Any]:
    """Return `transformer_layer_config` of layers of the configured type."""
    kind = config.layer_type or LayerType.llama
    layer = layer_config(config, spec, kind.value)
    if kind is LayerType.llama:
        layer |= {"mlp_bias": False, "pretraining_tp": 1}
    else:
        sliding = 0 if config.sliding_window is None else config.num_layers
        layer |= sliding_config(config.num_layers, sliding, config.sliding_window)
    if len(config.target_layer_ids or ()) != _NUM_STATES:
        # vLLM's llama class does not count the layer ids.
        layer["num_aux_hidden_states"] = len(config.target_layer_ids or ())
    return layer


def read_fused(serving: Mapping[str, Any], *, norm_before_residual: bool) -> dict[str, Any]:
    """Return the settings behind `fused_keys` and `fused_layer_config`.

    Args:
        serving: `config.json`.
        norm_before_residual: what the serving engine takes it to be when the file is silent.

    Raises:
        CheckpointError: a key is missing or has a value this code cannot run.
    """
    layer = need(serving, "transformer_layer_config")
    kind = layer.get("model_type", "llama")
    if kind not in LayerType.__members__:
        raise CheckpointError(
            f"config.json: transformer_layer_config.model_type={kind}: must be "
            f"{' or '.join(LayerType.__members__)}"
        )
    sliding, window = read_sliding(layer)
    if sliding not in (0, layer["num_hidden_layers"]):
        raise CheckpointError(
            "config.json: transformer_layer_config.layer_types: layers of both kinds cannot be "
            "run; let every layer slide or none"
        )
    return {
        "target_layer_ids": list(need(serving, "eagle_aux_hidden_state_layer_ids")),
        "layer_type": LayerType(kind),
        "norm_before_residual": serving.get("norm_before_residual", norm_before_residual),
        "norm_before_fc": bool(serving.get("norm_before_fc", False)),
        "sliding_window": window,
    }

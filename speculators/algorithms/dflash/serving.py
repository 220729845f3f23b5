"""`config.json` of a DFlash checkpoint, both ways (checkpoint specification, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any

from speculators.algorithms.dflash.config import DFlashConfig
from speculators.config.schema.speculator import LossWeights
from speculators.errors import CheckpointError
from speculators.modules.rotary import rope_problem, serving_rope
from speculators.verifier.spec import VerifierSpec

_FORMAT_VERSION = "0.5.0"
_TRAINING_KEY = "speculators_training"
_TRAINING_FIELDS = (
    "max_anchors",
    "anchor_strategy",
    "loss",
    "ce_labels",
    "position_weights",
    "loss_decay_gamma",
    "dpace_alpha",
    "normalization",
    "input_noise",
)
_FULL, _SLIDING = "full_attention", "sliding_attention"


def serving_config(config: DFlashConfig, spec: VerifierSpec) -> dict[str, Any]:
    """Return what vLLM needs to serve the drafter, and how it was trained.

    Args:
        config: resolved settings.
        spec: the verifier.
    """
    return {
        "architectures": ["DFlashDraftModel"],
        "speculators_model_type": "dflash",
        "speculators_version": _FORMAT_VERSION,
        "dtype": "bfloat16",
        "aux_hidden_state_layer_ids": list(config.target_layer_ids or ()),
        "block_size": config.block_size,
        "draft_vocab_size": config.draft_vocab_size,
        "mask_token_id": config.mask_token_id,
        "sample_from_anchor": False,
        # vLLM applies this to every layer, full ones too.
        "sliding_window_non_causal": not config.sliding_causal,
        "target_hidden_size": None,
        "tie_word_embeddings": False,
        "speculators_config": {
            "algorithm": "dflash",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "proposal_type": "greedy",
                    "speculative_tokens": config.block_size - 1,
                    "accept_tolerance": 0.0,
                    "verifier_accept_k": 1,
                }
            ],
            "verifier": {
                "name_or_path": spec.name_or_path,
                "architectures": [spec.architecture],
            },
        },
        "transformer_layer_config": _layer_config(config, spec),
        _TRAINING_KEY: {name: _plain(getattr(config, name)) for name in _TRAINING_FIELDS},
    }


def _layer_config(config: DFlashConfig, spec: VerifierSpec) -> dict[str, Any]:
    sliding = config.num_sliding_layers or 0
    return {
        "model_type": "qwen3",
        "hidden_size": spec.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": spec.rms_norm_eps,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "rope_parameters": serving_rope(spec.rope_parameters),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "layer_types": [_SLIDING] * sliding + [_FULL] * (config.num_layers - sliding),
        "use_sliding_window": sliding > 0,
        "sliding_window": config.sliding_window if sliding else None,
        "max_window_layers": 0 if sliding else config.num_layers,
        "tie_word_embeddings": False,
        "use_cache": True,
    }


def config_from_serving(serving: Mapping[str, Any]) -> DFlashConfig:
    """Rebuild the resolved settings from `config.json`.

    How the drafter was trained is kept under a key of this project; files of other writers have
    none, and get the schema's neutral values.

    Raises:
        CheckpointError: a key is missing or has a value this code cannot run.
    """
    kind = serving.get("speculators_model_type")
    if kind != "dflash":
        raise CheckpointError(f"config.json: speculators_model_type={kind}: must be dflash")
    if serving.get("sample_from_anchor"):
        raise CheckpointError(
            "config.json: sample_from_anchor=true: slots predict the token at their own position "
            "here; a drafter trained the other way cannot be run"
        )
    layer = _need(serving, "transformer_layer_config")
    rope = _need(layer, "transformer_layer_config.rope_parameters")
    if problem := rope_problem(rope):
        raise CheckpointError(f"config.json: transformer_layer_config.rope_parameters: {problem}")
    vocab_size = _need(layer, "transformer_layer_config.vocab_size")
    return DFlashConfig(
        num_layers=_need(layer, "transformer_layer_config.num_hidden_layers"),
        target_layer_ids=list(_need(serving, "aux_hidden_state_layer_ids")),
        draft_vocab_size=serving.get("draft_vocab_size") or vocab_size,
        block_size=serving.get("block_size") or _block_size(serving),
        mask_token_id=_need(serving, "mask_token_id"),
        num_attention_heads=_need(layer, "transformer_layer_config.num_attention_heads"),
        num_key_value_heads=_need(layer, "transformer_layer_config.num_key_value_heads"),
        head_dim=_need(layer, "transformer_layer_config.head_dim"),
        intermediate_size=_need(layer, "transformer_layer_config.intermediate_size"),
        **_sliding(serving, layer),
        **_training(serving.get(_TRAINING_KEY) or {}),
    )


def _sliding(serving: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Read windows and causality (DFlash specification, section 5.1)."""
    num_layers = layer["num_hidden_layers"]
    types = list(layer.get("layer_types") or [_FULL] * num_layers)
    sliding = types.count(_SLIDING)
    if types != [_SLIDING] * sliding + [_FULL] * (num_layers - sliding):
        raise CheckpointError(
            f"config.json: transformer_layer_config.layer_types={types}: must be one per layer, "
            f"{_SLIDING} first, then {_FULL}"
        )
    causal = not serving.get("sliding_window_non_causal", True)
    if causal and 0 < sliding < num_layers:
        raise CheckpointError(
            "config.json: sliding_window_non_causal=false with full and sliding layers: the "
            "engine would make the full layers causal too, which no training did"
        )
    # The public trainer writes false for drafters of full layers, which it trains in both
    # directions; so only sliding layers are taken to be causal.
    return {
        "sliding_window": _need(layer, "transformer_layer_config.sliding_window")
        if sliding
        else None,
        "num_sliding_layers": sliding,
        "sliding_causal": causal and sliding > 0,
    }


def _training(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the saved training settings back into the schema's types."""
    defaults = DFlashConfig()
    values: dict[str, Any] = {}
    for name, value in saved.items():
        if name not in _TRAINING_FIELDS:
            raise CheckpointError(f"config.json: {_TRAINING_KEY}.{name}: unknown setting")
        default = getattr(defaults, name)
        try:
            if isinstance(default, Enum):
                value = type(default)(value)
            elif isinstance(default, LossWeights):
                value = LossWeights(**value)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"config.json: {_TRAINING_KEY}.{name}={value}: {error}"
            ) from error
        values[name] = value
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, LossWeights):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return value


def _block_size(serving: Mapping[str, Any]) -> int:
    methods = _need(_need(serving, "speculators_config"), "speculators_config.proposal_methods")
    return int(methods[0]["speculative_tokens"]) + 1


def _need(mapping: Mapping[str, Any], path: str) -> Any:
    key = path.rpartition(".")[2]
    if mapping.get(key) is None:
        raise CheckpointError(f"config.json: {path} is missing")
    return mapping[key]

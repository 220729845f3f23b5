"""`config.json` of a checkpoint: what all algorithms write and read in the same way.

Checkpoint specification, sections 3 and 4. An algorithm adds its own keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import Enum
from typing import Any

from speculators.config.schema import DraftLayersConfig, LossWeights
from speculators.errors import CheckpointError
from speculators.modules.rotary import plain_theta, rope_problem, serving_rope
from speculators.verifier.spec import VerifierSpec

FULL, SLIDING = "full_attention", "sliding_attention"
"""Values of `layer_types`."""

_FORMAT_VERSION = "0.5.0"
TRAINING_KEY = "speculators_training"
"""Key of `config.json` for settings that serving does not need."""


def common_config(
    config: DraftLayersConfig,
    spec: VerifierSpec,
    *,
    architecture: str,
    num_draft_tokens: int,
    layer: Mapping[str, Any],
    trained_with: Sequence[str],
) -> dict[str, Any]:
    """Return the keys every checkpoint has.

    Args:
        config: resolved settings; its name is the `speculators_model_type`.
        spec: the verifier.
        architecture: name under `architectures`.
        num_draft_tokens: tokens of one proposal.
        layer: `transformer_layer_config`, as `layer_config` returns it.
        trained_with: settings that are kept under a key of this project.
    """
    return {
        "architectures": [architecture],
        "speculators_model_type": config.name,
        "speculators_version": _FORMAT_VERSION,
        "dtype": "bfloat16",
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": None,
        "tie_word_embeddings": False,
        "speculators_config": {
            "algorithm": config.name,
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "proposal_type": "greedy",
                    "speculative_tokens": num_draft_tokens,
                    "accept_tolerance": 0.0,
                    "verifier_accept_k": 1,
                }
            ],
            "verifier": {
                "name_or_path": spec.name_or_path,
                "architectures": [spec.architecture],
            },
        },
        "transformer_layer_config": dict(layer),
        TRAINING_KEY: {name: _plain(getattr(config, name)) for name in trained_with},
    }


def layer_config(config: DraftLayersConfig, spec: VerifierSpec, model_type: str) -> dict[str, Any]:
    """Return what `transformer_layer_config` says of every kind of draft layer."""
    return {
        "model_type": model_type,
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
        "tie_word_embeddings": False,
        "use_cache": True,
    }


def sliding_config(num_layers: int, num_sliding: int, window: int | None) -> dict[str, Any]:
    """Return the keys of `transformer_layer_config` about windows; sliding layers come first."""
    return {
        "layer_types": [SLIDING] * num_sliding + [FULL] * (num_layers - num_sliding),
        "use_sliding_window": num_sliding > 0,
        "sliding_window": window if num_sliding else None,
        "max_window_layers": 0 if num_sliding else num_layers,
    }


def read_common(serving: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the settings every checkpoint has, by field of `DraftLayersConfig`.

    Raises:
        CheckpointError: another algorithm, a missing key, or a rotary embedding that drafters do
            not compute.
    """
    kind = serving.get("speculators_model_type")
    if kind != name:
        raise CheckpointError(f"config.json: speculators_model_type={kind}: must be {name}")
    layer = need(serving, "transformer_layer_config")
    rope = need(layer, "transformer_layer_config.rope_parameters")
    if problem := rope_problem(rope):
        raise CheckpointError(f"config.json: transformer_layer_config.rope_parameters: {problem}")
    vocab_size = need(layer, "transformer_layer_config.vocab_size")
    sizes = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    return {
        "num_layers": need(layer, "transformer_layer_config.num_hidden_layers"),
        "draft_vocab_size": serving.get("draft_vocab_size") or vocab_size,
        **{size: need(layer, f"transformer_layer_config.{size}") for size in sizes},
        "rope_theta": plain_theta(rope),
    }


def read_drafter_spec(serving: Mapping[str, Any], spec: VerifierSpec) -> VerifierSpec:
    """Return the verifier with the rotary embedding, norms and length of the saved draft layers.

    A drafter of other writers may have values of its own; the engine takes those of the file.
    """
    layer = serving.get("transformer_layer_config") or {}
    keys = ("rope_parameters", "rms_norm_eps", "max_position_embeddings")
    return spec.with_drafter(**{key: layer.get(key) or getattr(spec, key) for key in keys})


def read_sliding(layer: Mapping[str, Any]) -> tuple[int, int | None]:
    """Return how many layers slide, and their window.

    Raises:
        CheckpointError: the sliding layers are not the first ones, or have no window.
    """
    num_layers = layer["num_hidden_layers"]
    types = list(layer.get("layer_types") or [FULL] * num_layers)
    sliding = types.count(SLIDING)
    if types != [SLIDING] * sliding + [FULL] * (num_layers - sliding):
        raise CheckpointError(
            f"config.json: transformer_layer_config.layer_types={types}: must be one per layer, "
            f"{SLIDING} first, then {FULL}"
        )
    return sliding, need(layer, "transformer_layer_config.sliding_window") if sliding else None


def read_training(
    serving: Mapping[str, Any], defaults: DraftLayersConfig, trained_with: Sequence[str]
) -> dict[str, Any]:
    """Turn the saved training settings back into the schema's types.

    How a drafter was trained is kept under a key of this project; files of other writers have
    none, and get the schema's neutral values.

    Raises:
        CheckpointError: an unknown setting, or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    for name, value in (serving.get(TRAINING_KEY) or {}).items():
        if name not in trained_with:
            raise CheckpointError(f"config.json: {TRAINING_KEY}.{name}: unknown setting")
        default = getattr(defaults, name)
        try:
            if isinstance(default, Enum):
                value = type(default)(value)
            elif isinstance(default, LossWeights):
                value = LossWeights(**value)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"config.json: {TRAINING_KEY}.{name}={value}: {error}") from error
        values[name] = value
    return values


def read_num_draft_tokens(serving: Mapping[str, Any]) -> int:
    """Return the tokens of one proposal."""
    methods = need(need(serving, "speculators_config"), "speculators_config.proposal_methods")
    return int(methods[0]["speculative_tokens"])


def need(mapping: Mapping[str, Any], path: str) -> Any:
    """Return the value at the last part of a dotted path.

    Raises:
        CheckpointError: it is missing or null.
    """
    key = path.rpartition(".")[2]
    if mapping.get(key) is None:
        raise CheckpointError(f"config.json: {path} is missing")
    return mapping[key]


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, LossWeights):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return value

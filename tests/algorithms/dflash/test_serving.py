from __future__ import annotations

import json
from typing import Any

import pytest

from algorithms.dflash.rows import make_config, make_spec
from speculators.algorithms.dflash.config import (
    AnchorStrategy,
    DFlashConfig,
    Normalization,
    PositionWeights,
)
from speculators.algorithms.dflash.model import DFlashDrafter
from speculators.algorithms.dflash.serving import config_from_serving, serving_config
from speculators.config.schema import CeLabels, LossWeights
from speculators.errors import CheckpointError


def written(**changes: Any) -> dict[str, Any]:
    config = DFlashDrafter.resolve(make_config(**changes), make_spec(), [])
    return json.loads(json.dumps(serving_config(config, make_spec())))


def test_example_of_the_specification() -> None:
    """Checkpoint specification, section 4, with its numbers."""
    spec = make_spec(
        name_or_path="Qwen/Qwen3-8B", hidden_size=4096, intermediate_size=12288, num_layers=36,
        vocab_size=151936, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        max_position_embeddings=40960,
        rope_parameters={"rope_theta": 1000000, "rope_type": "default"},
    )  # fmt: skip
    config = DFlashConfig(
        num_layers=5, block_size=8, target_layer_ids=[2, 18, 33], mask_token_id=151669,
        draft_vocab_size=8192, loss=LossWeights(ce=1.0),
    )  # fmt: skip
    found = serving_config(DFlashDrafter.resolve(config, spec, []), spec)
    found.pop("speculators_training")
    assert found == {
        "architectures": ["DFlashDraftModel"], "speculators_model_type": "dflash",
        "speculators_version": "0.5.0", "dtype": "bfloat16",
        "aux_hidden_state_layer_ids": [2, 18, 33], "block_size": 8, "draft_vocab_size": 8192,
        "mask_token_id": 151669, "sample_from_anchor": False, "sliding_window_non_causal": True,
        "target_hidden_size": None, "tie_word_embeddings": False,
        "speculators_config": {
            "algorithm": "dflash", "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 7,
                                  "accept_tolerance": 0.0, "verifier_accept_k": 1}],
            "verifier": {"name_or_path": "Qwen/Qwen3-8B", "architectures": ["Qwen3ForCausalLM"]},
        },
        "transformer_layer_config": {
            "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288,
            "num_hidden_layers": 5, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 128, "hidden_act": "silu", "rms_norm_eps": 1e-6, "vocab_size": 151936,
            "max_position_embeddings": 40960,
            "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
            "attention_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02,
            "layer_types": ["full_attention"] * 5, "use_sliding_window": False,
            "sliding_window": None, "max_window_layers": 5, "tie_word_embeddings": False,
            "use_cache": True,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "layer_types", "non_causal"),
    [
        ({}, ["full_attention"] * 3, True),
        ({"sliding_window": 9}, ["sliding_attention"] * 3, True),
        ({"sliding_window": 9, "sliding_causal": True}, ["sliding_attention"] * 3, False),
        (
            {"sliding_window": 9, "num_sliding_layers": 2},
            ["sliding_attention"] * 2 + ["full_attention"],
            True,
        ),
    ],
)
def test_causality_as_the_engine_reads_it(
    changes: dict[str, Any], layer_types: list[str], non_causal: bool
) -> None:
    found = written(**changes)
    assert found["sliding_window_non_causal"] is non_causal
    assert found["transformer_layer_config"]["layer_types"] == layer_types
    assert "is_causal" not in json.dumps(found)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": 9, "sliding_causal": True},
        {"sliding_window": 9, "num_sliding_layers": 1},
        {
            "anchor_strategy": AnchorStrategy.walk, "max_anchors": 3, "input_noise": 0.05,
            "loss": LossWeights(ce=0.5, kl=0.25, tv=1.0), "ce_labels": CeLabels.verifier,
            "position_weights": PositionWeights.dpace, "dpace_alpha": 0.3,
            "normalization": Normalization.slots, "loss_decay_gamma": 3.5, "draft_vocab_size": 50,
        },
    ],
)  # fmt: skip
def test_round_trip(changes: dict[str, Any]) -> None:
    resolved = DFlashDrafter.resolve(make_config(**changes), make_spec(), [])
    assert config_from_serving(written(**changes)) == resolved


def test_file_of_another_writer() -> None:
    """No training key; a full-attention drafter whose writer put its default `false`."""
    config = written()
    del config["speculators_training"], config["block_size"]
    config |= {"draft_vocab_size": None, "sliding_window_non_causal": False}
    found = config_from_serving(config)
    assert (found.block_size, found.draft_vocab_size, found.sliding_causal) == (5, 96, False)
    assert found.max_anchors == DFlashConfig().max_anchors


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("mask_token_id", None, "config.json: mask_token_id is missing"),
        (
            "transformer_layer_config.head_dim",
            None,
            "config.json: transformer_layer_config.head_dim is missing",
        ),
        (
            "speculators_model_type",
            "eagle3",
            "config.json: speculators_model_type=eagle3: must be dflash",
        ),
        (
            "sample_from_anchor",
            True,
            "config.json: sample_from_anchor=true: slots predict the token at their own position "
            "here; a drafter trained the other way cannot be run",
        ),
        (
            "transformer_layer_config.layer_types",
            ["full_attention", "sliding_attention", "full_attention"],
            "config.json: transformer_layer_config.layer_types=['full_attention', "
            "'sliding_attention', 'full_attention']: must be one per layer, sliding_attention "
            "first, then full_attention",
        ),
        (
            "transformer_layer_config.rope_parameters",
            {"rope_type": "yarn", "rope_theta": 1},
            "config.json: transformer_layer_config.rope_parameters: rope_type 'yarn' is not among "
            "those a drafter computes: default, linear, llama3",
        ),
        (
            "speculators_training.anchor_strategy",
            "guess",
            "config.json: speculators_training.anchor_strategy=guess: 'guess' is not a valid "
            "AnchorStrategy",
        ),
        (
            "speculators_training.colour",
            1,
            "config.json: speculators_training.colour: unknown setting",
        ),
    ],
)
def test_what_cannot_be_run(path: str, value: Any, message: str) -> None:
    config = written()
    *parents, key = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[key] = value
    with pytest.raises(CheckpointError) as caught:
        config_from_serving(config)
    assert str(caught.value) == message


def test_mixed_layers_that_the_engine_would_make_causal() -> None:
    config = written(sliding_window=9, num_sliding_layers=1)
    config["sliding_window_non_causal"] = False
    with pytest.raises(CheckpointError, match="the engine would make the full layers causal too"):
        config_from_serving(config)

from __future__ import annotations

import json
from typing import Any

import pytest

from algorithms.rows import make_spec
from speculators.algorithms.eagle3.config import Eagle3Config, TttTokens
from speculators.algorithms.eagle3.fused_config import LayerType
from speculators.algorithms.eagle3.model import Eagle3Drafter
from speculators.algorithms.eagle3.serving import config_from_serving, serving_config
from speculators.config.schema import CeLabels, LossWeights
from speculators.errors import CheckpointError


def resolved(**changes: Any) -> Eagle3Config:
    values: dict[str, Any] = {"num_layers": 1, "loss": LossWeights(kl=1.0)}
    return Eagle3Drafter.resolve(Eagle3Config(**values | changes), make_spec(), [])


def written(**changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(serving_config(resolved(**changes), make_spec())))


def test_example_of_the_specification() -> None:
    """Checkpoint specification, section 4, with its numbers."""
    spec = make_spec(
        name_or_path="Qwen/Qwen3-8B", hidden_size=4096, intermediate_size=12288, num_layers=36,
        vocab_size=151936, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        max_position_embeddings=40960,
        rope_parameters={"rope_theta": 1000000, "rope_type": "default"},
    )  # fmt: skip
    config = Eagle3Config(
        num_layers=1, draft_vocab_size=32000, layer_type=LayerType.llama, loss=LossWeights(kl=1.0)
    )
    found = serving_config(Eagle3Drafter.resolve(config, spec, []), spec)
    found.pop("speculators_training")
    assert found == {
        "architectures": ["Eagle3DraftModel"], "speculators_model_type": "eagle3",
        "speculators_version": "0.5.0", "dtype": "bfloat16",
        "eagle_aux_hidden_state_layer_ids": [2, 18, 33], "draft_vocab_size": 32000,
        "norm_before_residual": True, "norm_before_fc": False, "fc_norm": False,
        "norm_output": False, "embed_requires_grad": False, "target_hidden_size": None,
        "tie_word_embeddings": False,
        "speculators_config": {
            "algorithm": "eagle3", "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3,
                                  "accept_tolerance": 0.0, "verifier_accept_k": 1}],
            "verifier": {"name_or_path": "Qwen/Qwen3-8B", "architectures": ["Qwen3ForCausalLM"]},
        },
        "transformer_layer_config": {
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 12288,
            "num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 128, "hidden_act": "silu", "rms_norm_eps": 1e-6, "vocab_size": 151936,
            "max_position_embeddings": 40960,
            "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
            "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
            "initializer_range": 0.02, "pretraining_tp": 1, "tie_word_embeddings": False,
            "use_cache": True,
        },
    }  # fmt: skip


def test_number_of_weights_of_the_specification() -> None:
    """Section 2: Qwen3-8B, llama layers, three states, no norms before the fusion."""
    hidden, inner, heads, groups, dim = 4096, 12288, 32, 8, 128
    attention = 2 * hidden * dim * (heads + 2 * groups) + heads * dim * hidden
    assert 3 * hidden * hidden + attention + 3 * hidden * inner + 4 * hidden == 268_451_840


def test_default_layers_and_layer_type_follow_the_verifier() -> None:
    config = resolved()
    assert config.target_layer_ids == [2, 4, 5]
    assert config.layer_type is LayerType.qwen3
    llama = Eagle3Drafter.resolve(Eagle3Config(num_layers=1), make_spec(model_type="llama"), [])
    assert llama.layer_type is LayerType.llama


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer_type": LayerType.llama, "num_layers": 2, "target_layer_ids": [1, 3]},
        {"sliding_window": 16, "norm_before_residual": False, "fc_norm": True},
        {
            "norm_before_fc": True, "norm_output": True, "num_draft_tokens": 5, "ttt_steps": 7,
            "ttt_decay": 0.8, "ttt_tokens": TttTokens.own, "train_lm_head": True,
            "loss": LossWeights(ce=0.5, tv=1.0), "ce_labels": CeLabels.verifier,
            "input_noise": 0.05, "activation_checkpointing": True, "draft_vocab_size": 50,
        },
    ],
    ids=str,
)  # fmt: skip
def test_round_trip(changes: dict[str, Any]) -> None:
    assert config_from_serving(written(**changes)) == resolved(**changes)


def test_layers_that_are_not_three_are_counted_for_the_engine() -> None:
    assert "num_aux_hidden_states" not in written()["transformer_layer_config"]
    four = written(target_layer_ids=[1, 2, 3, 5])["transformer_layer_config"]
    assert four["num_aux_hidden_states"] == 4


def test_file_of_another_writer() -> None:
    """No training key; the engine takes an absent norm_before_residual for true."""
    config = written(draft_vocab_size=None)
    for key in ("speculators_training", "norm_before_residual", "fc_norm", "norm_output"):
        del config[key]
    found = config_from_serving(config)
    assert (found.norm_before_residual, found.fc_norm, found.draft_vocab_size) == (True, False, 96)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "speculators_model_type",
            "dflash",
            "config.json: speculators_model_type=dflash: must be eagle3",
        ),
        (
            "eagle_aux_hidden_state_layer_ids",
            None,
            "config.json: eagle_aux_hidden_state_layer_ids is missing",
        ),
        (
            "transformer_layer_config.model_type",
            "gpt2",
            "config.json: transformer_layer_config.model_type=gpt2: must be llama or qwen3",
        ),
        (
            "transformer_layer_config.layer_types",
            ["sliding_attention", "full_attention"],
            "config.json: transformer_layer_config.layer_types: layers of both kinds cannot be "
            "run; let every layer slide or none",
        ),
    ],
)
def test_what_cannot_be_run(path: str, value: Any, message: str) -> None:
    config = written(num_layers=2, sliding_window=9)
    *parents, key = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[key] = value
    with pytest.raises(CheckpointError) as caught:
        config_from_serving(config)
    assert str(caught.value) == message

"""Layouts of other writers: there and back bit for bit, and drafts that stay the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conversion.drafters import (
    FULL,
    REDUCED,
    SPEC,
    TABLES,
    config_of,
    convert,
    dflash,
    drafts,
    eagle3,
    edit_config,
    edit_tensors,
    equal_bits,
    no_tables,
    tensors_of,
)
from speculators.algorithms.layouts import Wishes
from speculators.config.schema import FloatType
from speculators.conversion.layout import read_model, write_model

_HOW_TRAINED = "speculators_training"


def without_training(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != _HOW_TRAINED}


@pytest.mark.parametrize("dtype", FloatType)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": 6},
        {"sliding_window": 6, "sliding_causal": True},
        {"sliding_window": 6, "num_sliding_layers": 1, "block_size": 5},
    ],
    ids=str,
)
def test_dflash_there_and_back(tmp_path: Path, changes: dict[str, Any], dtype: FloatType) -> None:
    write_model(tmp_path / "ours", dflash(**changes), dtype)
    there = convert(tmp_path / "ours", tmp_path / "there", "z_lab", tables=no_tables)
    back = convert(there, tmp_path / "back", tables=no_tables)
    again = convert(back, tmp_path / "again", "z_lab", tables=no_tables)
    ours = tmp_path / "ours"
    assert equal_bits(tensors_of(ours), tensors_of(back))
    assert equal_bits(tensors_of(there), tensors_of(again))
    assert config_of(there) == config_of(again)
    assert without_training(config_of(ours)) == without_training(config_of(back))
    assert torch.equal(drafts(ours), drafts(back))


def test_dflash_in_the_layout_of_its_authors(tmp_path: Path) -> None:
    """Checkpoint specification, section 6."""
    write_model(tmp_path / "ours", dflash(sliding_window=6), FloatType.bfloat16)
    there = convert(tmp_path / "ours", tmp_path / "there", "z_lab")
    assert config_of(there) == {
        "architectures": ["DFlashDraftModel"], "model_type": "qwen3", "dtype": "bfloat16",
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "vocab_size": 96, "max_position_embeddings": 512,
        "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False,
        "attention_dropout": 0.0, "initializer_range": 0.02, "tie_word_embeddings": False,
        "use_cache": True, "layer_types": ["sliding_attention"] * 2, "use_sliding_window": True,
        "sliding_window": 6, "max_window_layers": 0, "block_size": 4, "num_target_layers": 8,
        "dflash_config": {"mask_token_id": 95, "target_layer_ids": [0, 3, 6], "causal": False},
    }  # fmt: skip
    assert {name.partition(".")[0] for name in tensors_of(there)} == {
        *("fc", "hidden_norm", "norm", "layers")
    }


def test_forms_other_tools_write(tmp_path: Path) -> None:
    """Block size inside, rotary keys of transformers 5, code to import, tokens: all the same."""
    write_model(tmp_path / "ours", dflash(), FloatType.float32)
    there = convert(tmp_path / "ours", tmp_path / "there", "z_lab")

    def change(config: dict[str, Any]) -> None:
        config["dflash_config"]["block_size"] = config.pop("block_size")
        config["rope_parameters"] = {"rope_theta": config.pop("rope_theta")}
        config["rope_parameters"]["rope_type"] = "default"
        config |= {"auto_map": {"AutoModel": "x.Y"}, "bos_token_id": 1, "eos_token_id": 2}
        del config["rope_scaling"], config["num_target_layers"], config["layer_types"]

    edit_config(there, change)
    back = convert(there, tmp_path / "back")
    expected = without_training(config_of(tmp_path / "ours"))
    assert without_training(config_of(back)) == expected


@pytest.mark.parametrize("vocabulary", [FULL, REDUCED], ids=["full", "reduced"])
@pytest.mark.parametrize("dtype", FloatType)
def test_eagle_there_and_back(tmp_path: Path, vocabulary: Any, dtype: FloatType) -> None:
    write_model(tmp_path / "ours", eagle3(vocabulary=vocabulary), dtype)
    there = convert(tmp_path / "ours", tmp_path / "there", "eagle")
    back = convert(there, tmp_path / "back")
    again = convert(back, tmp_path / "again", "eagle")
    ours, names = tmp_path / "ours", tensors_of(there).keys()
    assert equal_bits(tensors_of(ours), tensors_of(back))
    assert equal_bits(tensors_of(there), tensors_of(again))
    assert config_of(there) == config_of(again)
    assert without_training(config_of(ours)) == without_training(config_of(back))
    assert torch.equal(drafts(ours), drafts(back))
    assert not [name for name in names if name.startswith("layers.")]
    assert {"midlayer.hidden_norm.weight", "fc.weight", "norm.weight", "lm_head.weight"} <= names
    assert ("d2t" in names) is (not vocabulary.is_full)


def test_verifiers_own_head_is_written_for_readers_that_need_it(tmp_path: Path) -> None:
    write_model(tmp_path / "ours", eagle3(vocabulary=FULL, train_lm_head=False), FloatType.bfloat16)
    there = convert(tmp_path / "ours", tmp_path / "there", "eagle")
    assert torch.equal(tensors_of(there)["lm_head.weight"], TABLES.lm_head.bfloat16())
    edit_tensors(there, lambda t: t.update({"embed_tokens.weight": TABLES.embed_tokens.half()}))
    back = convert(there, tmp_path / "back")
    assert equal_bits(tensors_of(tmp_path / "ours"), tensors_of(back))
    assert without_training(config_of(back)) == without_training(config_of(tmp_path / "ours"))


def test_eagle_as_its_authors_publish_it(tmp_path: Path) -> None:
    """A pickled file in half precision, no theta, no head size; what is not stored is said."""
    write_model(tmp_path / "ours", eagle3(), FloatType.float32)
    there = convert(tmp_path / "ours", tmp_path / "there", "eagle")
    half = {n: t.half() if t.is_floating_point() else t for n, t in tensors_of(there).items()}
    (there / "model.safetensors").unlink()
    torch.save(half, there / "pytorch_model.bin")
    edit_config(there, lambda c: [c.pop(key) for key in ("rope_theta", "rope_scaling", "head_dim")])
    wishes = Wishes(target_layer_ids=(1, 4, 6), num_draft_tokens=5)
    back = convert(there, tmp_path / "back", wishes=wishes)
    config = config_of(back)
    assert {t.dtype for n, t in tensors_of(back).items() if n not in ("d2t", "t2d")} == {
        torch.float16
    }
    assert config["dtype"] == "float16"
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 4, 6]
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 5
    assert config["norm_before_residual"] is False
    assert config[_HOW_TRAINED] == {"train_lm_head": True}
    assert config["speculators_config"]["verifier"]["name_or_path"] == SPEC.name_or_path


def test_fused_projections_are_taken_apart(tmp_path: Path) -> None:
    write_model(tmp_path / "ours", dflash(), FloatType.float32)
    there = convert(tmp_path / "ours", tmp_path / "there", "z_lab")

    def fuse(tensors: dict[str, torch.Tensor]) -> None:
        for whole, parts in {"self_attn.qkv": "qkv", "mlp.gate_up": ("gate", "up")}.items():
            place = whole.partition(".")[0]
            rows = [tensors.pop(f"layers.1.{place}.{part}_proj.weight") for part in parts]
            tensors[f"layers.1.{whole}_proj.weight"] = torch.cat(rows)

    edit_tensors(there, fuse)
    assert "layers.1.self_attn.qkv_proj.weight" in tensors_of(there)
    back = convert(there, tmp_path / "back")
    assert equal_bits(tensors_of(back), tensors_of(tmp_path / "ours"))


def test_rotary_and_norms_of_the_file_are_the_drafters_own(tmp_path: Path) -> None:
    """Engines take them from the file, so this project does too."""
    write_model(tmp_path / "ours", eagle3(), FloatType.float32)
    there = convert(tmp_path / "ours", tmp_path / "there", "eagle")
    edit_config(there, lambda c: c.update(rope_theta=77.0, rms_norm_eps=1e-3))
    back = convert(there, tmp_path / "back")
    layer = config_of(back)["transformer_layer_config"]
    assert layer["rope_parameters"] == {"rope_theta": 77.0, "rope_type": "default"}
    drafter = read_model(back, spec=SPEC, tables=TABLES)
    assert drafter.spec.rope_parameters["rope_theta"] == 77.0
    assert drafter.spec.rms_norm_eps == 1e-3
    assert drafter.serving_config()["transformer_layer_config"] == layer
    assert not torch.equal(drafts(back), drafts(tmp_path / "ours"))
    again = convert(back, tmp_path / "again", "eagle")
    assert config_of(again) == config_of(there)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64},
    ],
    ids=["linear", "llama3"],
)  # fmt: skip
def test_scaled_rotary_embedding_in_its_older_form(tmp_path: Path, scaling: dict[str, Any]) -> None:
    write_model(tmp_path / "ours", dflash(), FloatType.float32)
    there = convert(tmp_path / "ours", tmp_path / "there", "z_lab")
    older = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
    edit_config(there, lambda c: c.update(rope_scaling=older))
    back = convert(there, tmp_path / "back")
    rope = config_of(back)["transformer_layer_config"]["rope_parameters"]
    assert rope == {**scaling, "rope_theta": 10000.0}
    again = convert(back, tmp_path / "again", "z_lab")
    assert config_of(again)["rope_scaling"] == scaling

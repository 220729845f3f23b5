from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from speculators.config.schema.verifier import VerifierConfig
from speculators.errors import ConfigError
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.spec_reader import read_spec
from speculators.verifier.weights import make_head, read_tables


def read(folder: Path) -> VerifierSpec:
    return read_spec(VerifierConfig(name="test", name_or_path=str(folder)))


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_tied", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_head_gives_the_models_logits(
    save_model: Callable[..., Path], family: str, shard_size: str
) -> None:
    folder = save_model(family, shard_size)
    assert (folder / "model.safetensors.index.json").exists() == (shard_size == "20KB")
    spec = read(folder)
    tables = read_tables(spec)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert torch.equal(tables.embed_tokens, model.get_parameter("model.embed_tokens.weight"))
    entering_norm = []
    model.model.norm.register_forward_pre_hook(lambda module, args: entering_norm.append(args[0]))
    with torch.no_grad():
        expected = model(torch.arange(10)[None]).logits[0]
    torch.testing.assert_close(
        make_head(spec, tables).logits(entering_norm[0][0]), expected, rtol=1e-5, atol=1e-5
    )


def test_tied_head_is_the_embedding(save_model: Callable[..., Path]) -> None:
    tables = read_tables(read(save_model("qwen3_tied")))
    assert tables.lm_head is tables.embed_tokens
    converted = read_tables(read(save_model("qwen3_tied")), torch.bfloat16)
    assert converted.lm_head is converted.embed_tokens
    assert converted.norm_weight.dtype == torch.bfloat16


def test_a_copy_of_a_tied_head_costs_no_memory(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(save_model("qwen3_tied"), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    tables = read_tables(read(folder))
    assert tables.lm_head is tables.embed_tokens


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_finds_the_text_model_of_a_multimodal_checkpoint(
    save_model: Callable[..., Path], tmp_path: Path, prefix: str
) -> None:
    folder = shutil.copytree(save_model("llama"), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    head = "lm_head." if prefix.startswith("model.") else "language_model.lm_head."
    renamed = {
        name.replace("model.", prefix, 1) if name.startswith("model.") else f"{head}weight": tensor
        for name, tensor in tensors.items()
    }
    renamed["vision_tower.norm.weight"] = torch.zeros(3)
    save_file(renamed, folder / "model.safetensors")
    tables = read_tables(read(folder))
    assert torch.equal(tables.norm_weight, tensors["model.norm.weight"])
    assert torch.equal(tables.lm_head, tensors["lm_head.weight"])


def test_errors_name_what_was_looked_for(save_model: Callable[..., Path], tmp_path: Path) -> None:
    spec = read(save_model("llama"))
    folder = tmp_path / "m"
    folder.mkdir()
    spec = replace(spec, folder=str(folder))
    with pytest.raises(ConfigError, match=r"no model\.safetensors\.index\.json and no"):
        read_tables(spec)
    tensors = load_file(save_model("llama") / "model.safetensors")
    head = tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"none of lm_head\.weight, language_model\.lm_head"):
        read_tables(spec)
    save_file({**tensors, "lm_head.weight": head[:5]}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lm_head\.weight has shape \[5, 32\].* says \[97, 32\]"):
        read_tables(spec)
    biased = {**tensors, "lm_head.weight": head, "lm_head.bias": head[:, 0].contiguous()}
    save_file(biased, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"its head has a bias \(lm_head\.bias\)"):
        read_tables(spec)
    packed = {**tensors, "lm_head.weight": head.to(torch.int8)}
    save_file(packed, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"is stored as torch\.int8; allowed: float32"):
        read_tables(spec)


def test_damaged_and_missing_shards(save_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(save_model("llama", "20KB"), tmp_path / "m")
    spec = read(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shard = folder / index["model.embed_tokens.weight"]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match="is damaged"):
        read_tables(spec)
    shard.unlink()
    with pytest.raises(ConfigError, match="is missing; download the model again"):
        read_tables(spec)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ConfigError, match="is no index of safetensors files"):
        read_tables(spec)

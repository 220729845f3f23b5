"""The first layers of a verifier, out of whatever files of it are here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from speculators.config.schema.verifier import VerifierConfig
from speculators.errors import ConfigError
from speculators.verifier import first_layers
from speculators.verifier.first_layers import FirstLayers, reference_layers
from speculators.verifier.model import VerifierModel
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.spec_reader import read_spec
from speculators.verifier.weights import first_layer_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROMPT = torch.tensor([5, 9, 2, 17, 3, 8])


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., VerifierSpec]:
    """Return a function that lays a model into the Hub's cache, some files left out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def lay(model: Path, *left_out: str) -> VerifierSpec:
        cached = tmp_path / "models--someone--model"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text(COMMIT)
        shutil.copytree(
            model, cached / "snapshots" / COMMIT, ignore=shutil.ignore_patterns(*left_out)
        )
        return read_spec(VerifierConfig(name="hf", name_or_path="someone/model"))

    return lay


def later_shards(model: Path, count: int) -> list[str]:
    """Name the files that hold nothing but decoder layers from `count` on."""
    files = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    spec = read_spec(VerifierConfig(name="hf", name_or_path=str(model)))
    return sorted(set(files.values()) - set(first_layer_files(spec, count).values()))


@pytest.mark.parametrize("family", ["qwen3", "qwen3_tied", "gemma2", "gemma3", "qwen3_moe"])
def test_a_hub_models_first_layers_need_only_their_own_files(
    family: str, save_model: Callable[..., Path], download: Callable[..., VerifierSpec]
) -> None:
    folder = save_model(family, "20KB")
    later = later_shards(folder, 2)
    assert later
    spec = download(folder, *later)
    assert spec.revision == COMMIT
    assert reference_layers(spec, (1, 3, 4)) == 2  # one more than layer 1 needs
    streams = FirstLayers(spec, 2)(PROMPT)
    whole = read_spec(VerifierConfig(name="hf", name_or_path=str(folder)))
    expected = VerifierModel.load(whole).capture([PROMPT], [0, 1, 2])[0].aux
    for layer, own in streams.items():
        torch.testing.assert_close(own, expected[:, layer], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_compared_is_said(
    save_model: Callable[..., Path],
    download: Callable[..., VerifierSpec],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = save_model("llama", "20KB")
    later = later_shards(folder, 1)
    spec = download(folder, *later)
    assert reference_layers(spec, (1, 4)) == 1
    with pytest.raises(ConfigError, match=f"{later[0]}.* of someone/model not downloaded"):
        reference_layers(spec, (2, 4))
    monkeypatch.setattr(first_layers, "MAX_BYTES", 2**10)
    with pytest.raises(ConfigError, match=r"the first 1 layers take 0.0 GiB \(allowed"):
        reference_layers(spec, (1, 4))

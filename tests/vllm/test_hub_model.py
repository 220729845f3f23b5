"""A verifier by its hub id, in bfloat16: a server's states and layers against those here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from speculators.config.composition import compose
from speculators.config.schema import Config
from speculators.errors import HiddenStateError
from speculators.launch import extract
from speculators.launch.data_stage import prepare_data
from speculators.launch.verifier_stage import Verifier
from speculators.verifier import tiny
from vllm.conftest import free_port, running, speculators

LAYERS = (1, 3, 5)
NAME = "speculators/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHOICES = ["verifier=hf", f"verifier.name_or_path={NAME}", "verifier.dtype=bfloat16"]
CHOICES += [f"speculator.target_layer_ids={list(LAYERS)}"]


@pytest.fixture(scope="module", autouse=True)
def downloaded(folder: Path) -> Iterator[None]:
    """The tiny verifier as the Hub's cache holds a model: in several files, under a commit."""
    cached = folder / "hub" / f"models--{NAME.replace('/', '--')}"
    snapshot = cached / "snapshots" / COMMIT
    own = Path(tiny.folder())
    shutil.copytree(own, snapshot, ignore=shutil.ignore_patterns("*.safetensors"))
    model = AutoModelForCausalLM.from_pretrained(own, dtype="auto")
    model.save_pretrained(snapshot, max_shard_size="1MB")
    assert len(list(snapshot.glob("*.safetensors"))) > 1
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
        yield


@pytest.fixture(scope="module")
def server(vllm: str, folder: Path, downloaded: None) -> Iterator[str]:
    port = free_port()
    transfer = f"hidden_states.fetch.transfer_path={folder / 'transfer'}"
    command = speculators(
        *("serve", *CHOICES, f"serve.command={vllm}", f"serve.port={port}", transfer),
        *("training.sequence_length=256", f"output_dir={folder / 'serve'}"),
        *("--", "--enforce-eager"),
    )
    with running(command, port, folder / "serve.log") as url:
        yield url


def configured(folder: Path, server: str, *more: str) -> Config:
    return compose(
        "extract",
        [
            *CHOICES,
            *("data=tiny", "data.max_samples=24", "data.regenerate.enabled=false"),
            "training.sequence_length=256",
            *("hidden_states=online", f"hidden_states.endpoints=[{server}]"),
            f"hidden_states.fetch.transfer_path={folder / 'transfer'}",
            f"cache_dir={folder / 'cache'}",
            f"output_dir={folder / 'out'}",
            *more,
        ],
    )


def test_states_are_this_process_states(
    server: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(folder, server, f"hidden_states.store_path={folder / 'store'}")
    assert extract.run(config)["samples"] == 24
    assert caplog.text == ""  # nothing was left out of the handshake
    verifier = Verifier(config)
    data, model = prepare_data(config, verifier), verifier.model()
    assert model.dtype == torch.bfloat16
    worst = 0.0
    for side in (data.train, data.validation):
        for row in (side[i] for i in range(len(side))):
            path = folder / "store" / row.sample_id[:2] / f"{row.sample_id}.safetensors"
            states = load_file(path)["hidden_states"]
            assert states.dtype == torch.bfloat16
            (own,) = model.capture([row.input_ids], LAYERS)
            here = torch.cat([own.aux, own.last[:, None]], dim=1).float()
            apart = (states.float() - here).norm(dim=(0, 2)) / here.norm(dim=(0, 2))
            worst = max(worst, float(apart.max()))
    print(f"bfloat16: largest relative difference of a sample's layer {worst:.1e}")
    assert worst <= 2e-2


def test_layer_ids_that_are_off_by_one_are_named(server: str, folder: Path) -> None:
    """The server writes as many layers as are read, but others."""
    shifted = [i + 1 for i in LAYERS]
    config = configured(
        *(folder, server, f"speculator.target_layer_ids={shifted}"),
        f"hidden_states.store_path={folder / 'shifted'}",
    )
    with pytest.raises(
        HiddenStateError, match=r"column for layer 2 .*holds layer 1: layer ids are off by -1"
    ):
        extract.run(config)

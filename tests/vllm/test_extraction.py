"""`speculators serve` and everything that is asked of it: online, offline, mixed, regeneration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speculators.config.composition import compose
from speculators.config.schema import Config
from speculators.data.prepared import PreparedData
from speculators.launch import extract, prepare, train
from speculators.launch.data_stage import prepare_data
from speculators.launch.verifier_stage import Verifier
from vllm.conftest import free_port, running, speculators

LAYERS = (1, 3, 5)
NUM_ROWS = 24
STEPS = 6


@pytest.fixture(scope="module")
def server(vllm: str, folder: Path) -> Iterator[str]:
    port = free_port()
    transfer = f"hidden_states.fetch.transfer_path={folder / 'transfer'}"
    command = speculators(
        *("serve", "verifier=tiny", f"serve.command={vllm}", f"serve.port={port}", transfer),
        *("training.sequence_length=256", f"output_dir={folder / 'serve'}"),
        *("--", "--enforce-eager"),
    )
    log = folder / "serve.log"
    with running(command, port, log) as url:
        yield url
    assert "vLLM has stopped" in log.read_text()
    assert list((folder / "transfer").iterdir()) == []


def configured(command: str, folder: Path, name: str, *more: str) -> Config:
    return compose(
        command,
        [
            "verifier=tiny",
            f"data.max_samples={NUM_ROWS}",
            "data.regenerate.max_new_tokens=64",
            "training.sequence_length=256",
            "speculator.num_layers=1",
            "speculator.max_anchors=8",
            f"cache_dir={folder / 'cache'}",
            f"output_dir={folder / name}",
            f"hidden_states.fetch.transfer_path={folder / 'transfer'}",
            *more,
        ],
    )


def online(server: str) -> list[str]:
    return ["hidden_states=online", f"hidden_states.endpoints=[{server}]"]


def kept(folder: Path, name: str) -> str:
    return f"hidden_states.store_path={folder / name}"


def rows(data: PreparedData) -> list[Any]:
    return [side[i] for side in (data.train, data.validation) for i in range(len(side))]


def losses(folder: Path, name: str, *more: str) -> list[dict[str, Any]]:
    """Train for a few steps and return what was measured."""
    steps = [f"training.max_steps={STEPS}", "training.validate_every_steps=3"]
    also = ["training.log_every_steps=1", "evaluation.enabled=false"]
    train.run(configured("train", folder, name, *steps, *also, *more))
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] in ("train", "validation")]


def test_regenerated_answers_and_their_states_are_the_verifiers_own(
    server: str, folder: Path, tmp_path: Path
) -> None:
    capture = [*online(server), "data.regenerate.capture=true", kept(folder, "captured")]
    config = configured("prepare", folder, "prepare", *capture)
    report = prepare.run(config)
    assert report["num_conversations"] == NUM_ROWS
    data = prepare_data(config, Verifier(config))
    assert data.reused
    own = configured("prepare", folder, "own", f"cache_dir={tmp_path}")
    expected = rows(prepare_data(own, Verifier(own)))
    assert [row.sample_id for row in rows(data)] == [row.sample_id for row in expected]
    masks = [
        torch.equal(a.loss_mask, b.loss_mask) for a, b in zip(rows(data), expected, strict=True)
    ]
    assert all(masks)
    answers = [json.loads(line) for line in Path(report["answers"]).read_text().splitlines()]
    assert {answer["engine"].partition(" ")[0] for answer in answers} == {"vllm"}
    assert {answer["finish_reason"] for answer in answers} <= {"stop", "length"}
    model = Verifier(config).model()
    for row in rows(data):
        path = folder / "captured" / row.sample_id[:2] / f"{row.sample_id}.safetensors"
        states, capture_here = (
            load_file(path)["hidden_states"],
            model.capture([row.input_ids], LAYERS)[0],
        )
        here = torch.cat([capture_here.aux, capture_here.last[:, None]], dim=1)
        apart = (states - here).norm(dim=-1) / here.norm(dim=-1)
        assert apart.max() <= 1e-5


def test_extraction_finds_what_was_captured(server: str, folder: Path) -> None:
    config = configured("extract", folder, "again", *online(server), kept(folder, "captured"))
    assert extract.run(config)["samples"] == 0


def test_online_offline_and_mixed_give_the_same_losses(server: str, folder: Path) -> None:
    cache = "hidden_states.on_generate=cache"
    embedded = losses(folder, "embedded", "hidden_states=embedded")
    direct = losses(folder, "online", *online(server))
    cached = losses(folder, "cached", *online(server), cache, kept(folder, "store"))
    offline = losses(folder, "offline", "hidden_states=offline", kept(folder, "store"))
    assert offline == cached
    # Half of the store ahead of training, the rest while it runs.
    half = configured(
        *("extract", folder, "half", *online(server), kept(folder, "half")),
        "extract.max_samples=12",
    )
    assert extract.run(half)["samples"] == 12
    mixed = losses(folder, "mixed", *online(server), cache, kept(folder, "half"))
    for other in (direct, cached, mixed):
        for mine, theirs in zip(embedded, other, strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)

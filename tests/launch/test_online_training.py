"""Training on states from servers: the same losses as in this process, whatever goes wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from speculators.config.composition import compose
from speculators.errors import HiddenStateOutageError
from speculators.launch import train
from speculators.launch.verifier_stage import Verifier
from speculators.testing.fake_vllm import FakeVLLM
from speculators.testing.faults import Fault, FaultKind
from speculators.testing.served_model import ServedModel

STEPS = 6


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("online_training")


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return ServedModel(Verifier(compose("train", ["verifier=tiny"])).model())


@pytest.fixture
def server(shared: Path, model: ServedModel) -> Iterator[FakeVLLM]:
    with FakeVLLM(
        shared / "transfer", (1, 3, 5, 7), model, answers=model.answer, max_model_len=257
    ) as fake:
        yield fake


def run(shared: Path, name: str, *overrides: str) -> list[dict[str, Any]]:
    """Train for a few steps and return what was measured."""
    config = compose(
        "train",
        [
            "verifier=tiny",
            "speculator.target_layer_ids=[1,3,5]",
            "speculator.num_layers=1",
            "speculator.max_anchors=8",
            "data.max_samples=40",
            "training.sequence_length=256",
            f"training.max_steps={STEPS}",
            "training.validate_every_steps=3",
            "training.log_every_steps=1",
            "evaluation.enabled=false",
            f"cache_dir={shared / 'cache'}",
            f"output_dir={shared / name}",
            f"hidden_states.fetch.transfer_path={shared / 'transfer'}",
            "hidden_states.fetch.backoff_seconds=0.005",
            "hidden_states.fetch.file_timeout_seconds=0.3",
            "hidden_states.fetch.prefetch_samples=4",
            *overrides,
        ],
    )
    train.run(config)
    return measured(shared / name)


def measured(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] in ("train", "validation")]


def online(server: FakeVLLM) -> list[str]:
    return ["hidden_states=online", f"hidden_states.endpoints=[{server.url}]"]


@pytest.fixture(scope="module")
def undisturbed(shared: Path) -> list[dict[str, Any]]:
    return run(shared, "embedded", "hidden_states=embedded")


def test_online_offline_and_embedded_losses_are_equal(
    server: FakeVLLM, shared: Path, undisturbed: list[dict[str, Any]]
) -> None:
    store = f"hidden_states.store_path={shared / 'store'}"
    cached = run(shared, "online", *online(server), store, "hidden_states.on_generate=cache")
    assert cached == undisturbed
    calls = len(server.calls)
    assert run(shared, "offline", "hidden_states=offline", store) == undisturbed
    assert len(server.calls) == calls


def test_faults_leave_the_losses_unchanged(
    server: FakeVLLM,
    shared: Path,
    undisturbed: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = (FaultKind.status, FaultKind.reset, FaultKind.nan, FaultKind.missing_file)
    for i, kind in enumerate((*kinds, FaultKind.truncated_json, FaultKind.foreign_file)):
        server.faults.add(Fault(kind), count=2, when=lambda call, i=i: call.number % 7 == i + 1)
    # The handshake comes first and is not forgiving: let it pass.
    take = server.faults.take
    monkeypatch.setattr(
        server.faults, "take", lambda call: take(call) if call.number >= 5 else None
    )
    patient = "hidden_states.fetch.retries=8"
    assert run(shared, "disturbed", *online(server), patient) == undisturbed


@pytest.mark.parametrize("last_call", [14, 17])
def test_an_outage_saves_a_checkpoint_and_the_same_command_goes_on(
    last_call: int, server: FakeVLLM, shared: Path, undisturbed: list[dict[str, Any]]
) -> None:
    # The server dies after some samples: in the middle of a step, or of a validation.
    def kill_at(call: Any) -> bool:
        if call.number == last_call:
            threading.Thread(target=server.stop).start()
        return False

    folder = f"outage_{last_call}"
    server.faults.add(Fault(FaultKind.status), count=None, when=kill_at)
    patience = "hidden_states.fetch.outage_timeout_seconds=0.5"
    with pytest.raises(HiddenStateOutageError, match=r"Saved checkpoints/\S+ after step \d"):
        run(shared, folder, *online(server), patience)
    before = measured(shared / folder)
    assert 0 < len(before) < len(undisturbed)
    server.faults.clear()
    server.start()
    assert run(shared, folder, *online(server), patience) == undisturbed

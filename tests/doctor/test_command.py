"""The command and the doctor beside training, from configuration to files, on the tiny verifier."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.cli import main
from speculators.config.composition import compose
from speculators.config.schema import Config
from speculators.conversion.integrity import CONFIG_FILE
from speculators.doctor import command
from speculators.doctor.certificate import PARITY_FILE, read_findings, read_recording
from speculators.doctor.finding import Verdict
from speculators.errors import CheckpointError
from speculators.launch import train
from speculators.training.state import is_complete
from speculators.verifier.model import VerifierModel


def configured(folder: Path, name: str, *overrides: str, command: str = "train") -> Config:
    quick = ["debug=fast", "data.regenerate.enabled=false", "evaluation.enabled=false"]
    places = [f"output_dir={folder / name}", f"cache_dir={folder / 'cache'}"]
    return compose(command, [*quick, *places, *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doctor")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    train.run(configured(folder, "run", "training.checkpoint_every_steps=2"))
    return folder / "run"


def parity(folder: Path) -> dict[str, Any]:
    return json.loads((folder / PARITY_FILE).read_text())


def examined(folder: Path, checkpoint: Path, *overrides: str) -> dict[str, Any]:
    asked = configured(folder, "empty", f"checkpoint={checkpoint}", *overrides, command="doctor")
    return command.run(asked)


def edited(checkpoint: Path, to: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    shutil.copytree(checkpoint, to)
    config = json.loads((to / CONFIG_FILE).read_text())
    change(config)
    (to / CONFIG_FILE).write_text(json.dumps(config))
    return to


def test_training_leaves_a_certificate_at_the_start_and_in_every_checkpoint(run: Path) -> None:
    start = parity(run)
    assert (start["passed"], start["first_failure"]) == (True, None)
    for name in ("step-2", "0"):
        folder = run / "checkpoints" / name
        found = parity(folder)
        assert found["passed"]
        assert found["files"].keys() == {"config.json", "model.safetensors"}
        assert found["packages"]["torch"]
        assert is_complete(folder)
        recorded = read_recording(folder)
        assert recorded is not None
        assert len(recorded.probes) == 2
        assert all(probe.drafts for probe in recorded.probes)


def test_the_command_agrees_and_keeps_what_training_recorded(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = run / "checkpoints" / "checkpoint_best"
    before = parity(best)["recording"]
    found = examined(folder, best)
    assert found["passed"]
    assert "parity: 15 stages agree, 1 could not be checked here" in capsys.readouterr().out
    after = parity(best)
    assert after["recording"] == before
    assert after["examined"] == "speculators doctor"
    assert is_complete(best.resolve())
    assert not (folder / "empty").exists()


def test_a_difference_ends_with_one_line_and_a_status(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = edited(
        run / "checkpoints" / "checkpoint_best",
        folder / "causal",
        lambda config: config.update(sliding_window_non_causal=False),
    )
    places = [f"output_dir={folder / 'empty'}", f"cache_dir={folder / 'cache'}"]
    assert main(["doctor", f"checkpoint={broken}", *places]) == CheckpointError.exit_code
    assert (
        "error: doctor: causality: training and engine differ at sliding_window_non_causal, "
        "layer_types of config.json: the engine takes causal (allowed training: bidirectional); "
        "wrong causality: "
    ) in capsys.readouterr().err
    assert parity(broken)["passed"] is False


def test_a_checkpoint_without_a_certificate_is_held_against_its_run_yaml(
    folder: Path, run: Path
) -> None:
    bare = edited(run / "checkpoints" / "0", folder / "bare", lambda config: None)
    (bare / PARITY_FILE).unlink()
    found = {f["stage"]: f for f in examined(folder, bare)["findings"]}
    assert found["template"]["verdict"] == found["verifier"]["verdict"] == "passed"
    assert found["recorded drafts"]["verdict"] == "not checked"
    with pytest.raises(CheckpointError, match=r"the template renders another prompt"):
        examined(folder, bare, "verifier.template=plain")


def test_a_fault_stops_training_before_the_first_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = VerifierModel.capture

    def off_by_one(self: Any, texts: Any, layer_ids: Any, **options: Any) -> Any:
        shifted = [i + 1 for i in layer_ids] if len(layer_ids) > 1 else layer_ids
        return capture(self, texts, shifted, **options)

    monkeypatch.setattr(VerifierModel, "capture", off_by_one)
    with pytest.raises(CheckpointError, match=r"they equal the stream entering layer 2: target_"):
        train.run(configured(folder, "stopped"))
    assert not (folder / "stopped" / "checkpoints").exists()
    assert parity(folder / "stopped")["passed"] is False

    train.run(configured(folder, "warned", "doctor.at_start=false"))
    found = read_findings(folder / "warned" / "checkpoints" / "0")
    assert [f.cause for f in found if f.verdict is Verdict.failed] == ["wrong layer ids"]
    assert not (folder / "warned" / PARITY_FILE).exists()


def test_training_is_the_same_with_and_without_a_doctor(folder: Path, run: Path) -> None:
    quiet = "doctor.at_start=false", "doctor.at_checkpoints=false"
    train.run(configured(folder, "quiet", "training.checkpoint_every_steps=2", *quiet))
    names = ("metrics.jsonl", "checkpoints/0/model.safetensors")
    for name in names:
        assert (folder / "quiet" / name).read_bytes() == (run / name).read_bytes()
    assert not list((folder / "quiet").rglob(PARITY_FILE))


def test_a_run_that_stopped_goes_on_to_the_same_end(folder: Path, run: Path) -> None:
    halves = folder / "halves"
    every = "training.checkpoint_every_steps=2"
    train.run(configured(folder, "halves", every))
    shutil.rmtree(halves / "checkpoints" / "0")
    examined(folder, halves / "checkpoints" / "step-2")  # changes parity.json
    train.run(configured(folder, "halves", every))
    assert (halves / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    ours, theirs = (
        torch.load(x / "checkpoints" / "0" / "optimizer_state_dict.pt", weights_only=True)
        for x in (halves, run)
    )
    assert all(torch.equal(ours["master"][k], theirs["master"][k]) for k in theirs["master"])

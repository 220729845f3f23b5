"""Checkpoint folders: what is written, what stays, what is never touched."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from speculators.config.schema import BestMetric
from speculators.errors import CheckpointError
from speculators.training.checkpoint import CheckpointFolder, load_master
from speculators.training.ranks import Ranks
from speculators.training.retention import dispensable
from speculators.training.spread import Replicated
from speculators.training.state import TrainerState, is_complete, read_state
from training.toy import toy_config, toy_drafter, toy_trainer

ALONE = Replicated(toy_drafter(), Ranks())


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def write_config(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def write(root: Path, name: str, step: int, state: TrainerState | None = None) -> TrainerState:
    """A checkpoint of almost nothing, through the real writer."""
    state = state or TrainerState()
    state.position.step = step
    CheckpointFolder(root, keep_last=None).save(
        name,
        state,
        write_model=write_config,
        tensors={"rng_state_rank0.pt": {"x": torch.ones(2)}},
        run_yaml="seed: 0\n",
    )
    return state


def test_a_run_leaves_the_whole_layout(tmp_path: Path) -> None:
    result = toy_trainer(tmp_path, run_yaml="seed: 5\n").fit()
    root = tmp_path / "checkpoints"
    assert names(root) == ["0", "1", "checkpoint_best"]
    assert names(root / "1") == [
        "config.json",
        "model.safetensors",
        "optimizer_state_dict.pt",
        "rng_state_rank0.pt",
        "run.yaml",
        "scheduler_state_dict.pt",
        "trainer_state.json",
    ]
    assert (root / "1" / "run.yaml").read_text() == "seed: 5\n"
    assert os.readlink(root / "checkpoint_best") == result.best_checkpoint.name  # pyright: ignore
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (root / "1").iterdir()}
    assert modes == {0o666 & ~umask()}


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_every_tensor_file_loads_without_running_code(tmp_path: Path) -> None:
    toy_trainer(tmp_path, toy_config(tmp_path, ema_decay=0.9)).fit()
    folder = tmp_path / "checkpoints" / "1"
    saved = {p.name: torch.load(p, weights_only=True) for p in folder.glob("*.pt")}
    master = saved["optimizer_state_dict.pt"]["master"]
    assert {tensor.dtype for tensor in master.values()} == {torch.float32}
    assert saved["scheduler_state_dict.pt"] == [
        {
            "name": "cosine",
            "step": 10,
            "total_steps": 10,
            "warmup_steps": 2,
            "final_fraction": 0.0,
        }
    ]
    average = saved["optimizer_state_dict.pt"]["average"]["average"]
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            served = file.get_tensor(name)
            assert torch.equal(served, average[name].bfloat16())
            assert not torch.equal(average[name], master[name])


def test_retention_keeps_the_newest_and_the_best() -> None:
    assert dispensable(["a", "b", "c", "d"], 2, "a") == ["b"]
    assert dispensable(["a", "b", "c", "d"], 2, "d") == ["a", "b"]
    assert dispensable(["a", "b"], 2, None) == []
    assert dispensable(["a", "b"], None, None) == []


def test_the_best_survives_and_strangers_stay(tmp_path: Path) -> None:
    values = iter([1.0, 3.0, 2.0, 3.0])
    root = tmp_path / "checkpoints"
    (root / "mine").mkdir(parents=True)
    (root / "7").mkdir()
    trainer = toy_trainer(
        tmp_path,
        toy_config(tmp_path, epochs=4, keep_last=1),
        validate=lambda drafter: {"acceptance_length": next(values)},
    )
    result = trainer.fit()
    assert names(root) == ["1", "3", "7", "checkpoint_best", "mine"]
    assert result.best_checkpoint == root / "1"  # 3.0 again in epoch 3: ties keep the older
    assert result.last_checkpoint == root / "3"
    assert result.best_value == 3.0
    assert os.readlink(root / "checkpoint_best") == "1"


def test_a_file_someone_put_into_a_checkpoint_outlives_it(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, toy_config(tmp_path, epochs=3, keep_last=1), validate=None)
    note = tmp_path / "checkpoints" / "0" / "note.txt"
    validate_calls: list[int] = []

    def validate(drafter: Any) -> dict[str, float]:
        if note.parent.exists():
            note.write_text("mine")
        validate_calls.append(0)
        return {"acceptance_length": float(len(validate_calls))}

    trainer = toy_trainer(tmp_path, toy_config(tmp_path, epochs=3, keep_last=1), validate=validate)
    trainer.fit()
    assert names(note.parent) == ["note.txt"]


def test_best_by_loss_is_the_lowest(tmp_path: Path) -> None:
    values = iter([3.0, 1.0, 2.0, float("nan")])
    config = toy_config(tmp_path, epochs=4, best_metric=BestMetric.loss)
    result = toy_trainer(tmp_path, config, validate=lambda d: {"loss": next(values)}).fit()
    assert result.best_value == 1.0
    assert result.best_checkpoint == tmp_path / "checkpoints" / "1"


def test_an_improvement_between_checkpoints_is_saved(tmp_path: Path) -> None:
    values = iter([1.0, 5.0, 2.0, 2.0, 2.0])
    config = toy_config(tmp_path, validate_every_steps=2, keep_last=1)
    result = toy_trainer(tmp_path, config, validate=lambda d: {"acceptance_length": next(values)})
    assert result.fit().best_checkpoint == tmp_path / "checkpoints" / "step-4"
    assert names(tmp_path / "checkpoints") == ["1", "checkpoint_best", "step-4"]


def test_the_newest_complete_checkpoint_counts_by_step(tmp_path: Path) -> None:
    for name, step in (("1", 20), ("step-25", 25), ("0", 10)):
        write(tmp_path, name, step)
    folder = CheckpointFolder(tmp_path, None)
    assert folder.newest() == "step-25"
    (tmp_path / "step-25" / "rng_state_rank0.pt").write_bytes(b"cut")
    assert not is_complete(tmp_path / "step-25")
    assert (folder.newest(), folder.incomplete()) == ("1", ["step-25"])
    (tmp_path / "1" / "trainer_state.json").unlink()
    assert (folder.newest(), folder.incomplete()) == ("0", ["1", "step-25"])
    (tmp_path / "0" / "config.json").unlink()
    assert folder.newest() is None
    assert names(tmp_path) == ["0", "1", "step-25"]
    assert CheckpointFolder(tmp_path / "nowhere", None).newest() is None


def test_unfinished_folders_of_dead_processes_go_others_stay(tmp_path: Path) -> None:
    dead = 2**22 + 1  # above the largest process id of Linux
    for name in (
        f"step-4.tmp-{dead}",
        f"notes.tmp-{dead}",
        f"step-6.tmp-{os.getppid()}",
        "step-8.tmp-x",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / f"checkpoint_best.tmp-{dead}").symlink_to("0")
    removed = CheckpointFolder(tmp_path, None).remove_unfinished()
    assert removed == [f"step-4.tmp-{dead}", f"checkpoint_best.tmp-{dead}"]
    assert names(tmp_path) == sorted(
        [f"notes.tmp-{dead}", f"step-6.tmp-{os.getppid()}", "step-8.tmp-x"]
    )


def test_a_taken_name_is_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path, "0", 5)
    folder = CheckpointFolder(tmp_path, None)
    assert folder.free_name(1, 9) == "1"
    assert folder.free_name(0, 9) == "step-9"
    assert folder.free_name(None, 9) == "step-9"
    (tmp_path / "step-9").mkdir()
    assert folder.free_name(None, 9) == "step-9"
    assert names(tmp_path) == ["0", "step-9.damaged-1"]
    with pytest.raises(CheckpointError) as error:
        write(tmp_path, "0", 6)
    assert str(error.value) == f"{tmp_path}/0: exists already, and is not overwritten"


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError) as error:
        write(tmp_path, "0", 1)
    assert str(error.value) == (
        f"{tmp_path}/0: cannot be written: No space left on device; nothing half-written was left, "
        "make room or choose another output_dir and start again"
    )
    assert names(tmp_path) == []


def test_a_folder_called_checkpoint_best_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_best").mkdir()
    state = TrainerState(best_checkpoint="0")
    with pytest.raises(CheckpointError) as error:
        write(tmp_path, "0", 1, state)
    assert str(error.value) == (
        f"{tmp_path}/checkpoint_best: is not a link made by training; move it away, the name is "
        "needed for the link to 0"
    )


def test_a_damaged_tensor_file_is_one_clear_line(tmp_path: Path) -> None:
    write(tmp_path, "0", 1)
    (tmp_path / "0" / "rng_state_rank0.pt").write_bytes(b"nonsense")
    folder = CheckpointFolder(tmp_path, None)
    for name in ("rng_state_rank0.pt", "optimizer_state_dict.pt"):
        with pytest.raises(CheckpointError) as error:
            folder.load("0", name)
        text = str(error.value)
        assert text.startswith(f"{tmp_path}/0/{name}: is missing or damaged (")
        assert text.endswith("); move the folder away to go on from the checkpoint before it")
        assert "\n" not in text


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    parameters = dict(toy_drafter().trainable_parameters())
    other = dict(toy_drafter(depth=3).trainable_parameters())
    other["fc.weight"] = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(CheckpointError) as error:
        load_master(parameters, other, ALONE)
    assert str(error.value) == (
        "optimizer_state_dict.pt: weights do not fit the drafter: fc.weight, layers.2.weight"
    )


def test_the_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = TrainerState(best_value=0.1 + 0.2, settings={"a.b": [1, None]}, world_size=1)
    write(tmp_path, "0", 7, state)
    assert read_state(tmp_path / "0") == state
    path = tmp_path / "0" / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))
    with pytest.raises(CheckpointError, match=r"trainer_state.json: cannot be read \(written by"):
        read_state(tmp_path / "0")

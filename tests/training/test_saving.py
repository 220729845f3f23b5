"""Checkpoints are written while training goes on, and nothing is lost by that."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import filesystem
from torch.multiprocessing.spawn import ProcessExitedException
from torch.utils._pytree import tree_flatten

from speculators.config.schema import AdamWConfig, Config, LauncherConfig
from speculators.data.types import PackedBatch
from speculators.errors import CheckpointError
from speculators.testing.distributed import run_distributed
from speculators.training import checkpoint
from speculators.training.checkpoint import CheckpointFolder
from speculators.training.ranks import Ranks
from training.toy import ToyRows, toy_config, toy_drafter, toy_trainer

NAMES = ["0", "1", "checkpoint_best"]


@dataclass
class ReportingRows(ToyRows):
    """Says when the n-th row is asked for."""

    stop_at: int = 0
    reached: threading.Event = field(default_factory=threading.Event)

    def iterate(self, epoch: int, first_row: int, **ranks: int) -> Iterator[PackedBatch]:
        for row in super().iterate(epoch, first_row, **ranks):
            if len(self.taken) == self.stop_at:
                self.reached.set()
            yield row


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@pytest.mark.parametrize("in_background", [True, False])
def test_training_goes_on_while_a_checkpoint_is_written(
    in_background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first checkpoint, after 5 rows, is not written before the 8th row was asked for."""
    rows, save = ReportingRows(stop_at=8), checkpoint._save
    went_on: list[bool] = []

    def slow(path: Path, content: Any) -> None:
        if not went_on:
            went_on.append(rows.reached.wait(timeout=10.0 if in_background else 0.2))
        save(path, content)

    monkeypatch.setattr(checkpoint, "_save", slow)
    config = toy_config(tmp_path / "slow", checkpoint_in_background=in_background)
    toy_trainer(tmp_path / "slow", config, rows=rows, validate=None).fit()
    assert went_on == [in_background]
    monkeypatch.setattr(checkpoint, "_save", save)
    toy_trainer(tmp_path / "fast", toy_config(tmp_path / "fast"), validate=None).fit()
    for name in ("model.safetensors", "optimizer_state_dict.pt"):
        slow_file, fast_file = (tmp_path / n / "checkpoints" / "0" / name for n in ("slow", "fast"))
        assert slow_file.read_bytes() == fast_file.read_bytes(), name
    assert names(tmp_path / "slow" / "checkpoints") == NAMES


def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint._save

    def full(path: Path, content: Any) -> None:
        if "step-6" in str(path):
            raise OSError(28, "No space left on device")
        save(path, content)

    monkeypatch.setattr(checkpoint, "_save", full)
    config = toy_config(tmp_path, checkpoint_every_steps=3, max_steps=40)
    with pytest.raises(CheckpointError) as error:
        toy_trainer(tmp_path, config).fit()
    assert str(error.value) == (
        f"{tmp_path}/checkpoints/step-6: cannot be written: No space left on device; nothing "
        "half-written was left, make room or choose another output_dir and start again"
    )
    assert names(tmp_path / "checkpoints") == ["0", "checkpoint_best", "step-3"]
    monkeypatch.setattr(checkpoint, "_save", save)
    assert toy_trainer(tmp_path, config).fit().steps == 40


def train_where_one_disk_is_full(ranks: Ranks, config: Config) -> None:
    """One process of a run; the second has no room for its part of `step-2`."""
    write = filesystem._write_files_from_queue

    def full(*args: Any, **options: Any) -> None:
        if ranks.rank == 1 and Path(config.output_dir, "checkpoints", "step-1").exists():
            raise OSError(28, "No space left on device")
        write(*args, **options)

    filesystem._write_files_from_queue = full
    with pytest.raises(CheckpointError) as error:
        train(ranks, config)
    Path(config.output_dir, f"said-{ranks.rank}").write_text(str(error.value))


@pytest.mark.slow
def test_every_rank_says_which_one_could_not_write_its_part(tmp_path: Path) -> None:
    run_distributed(
        train_where_one_disk_is_full, 2, sharded(tmp_path, checkpoint_every_steps=1, max_steps=9)
    )
    root = tmp_path / "checkpoints"
    for rank in range(2):
        assert (tmp_path / f"said-{rank}").read_text() == (
            f"{root}: rank 1 cannot write its part of a checkpoint: [Errno 28] No space left on "
            "device; nothing half-written was left, make room or choose another output_dir and "
            "start again"
        )
    assert names(root) == ["checkpoint_best", "step-1"]
    run_distributed(train, 2, sharded(tmp_path, checkpoint_every_steps=1, max_steps=9))


def sharded(folder: Path, launcher: str = "fsdp", **training: Any) -> Config:
    config = toy_config(folder, optimizer=AdamWConfig(lr=0.01), ema_decay=0.9, **training)
    return replace(config, launcher=LauncherConfig(name=launcher))


def train(ranks: Ranks, config: Config, killed_at: int | None = None) -> None:
    """One process of a run; the main one dies while it writes file number `killed_at`."""
    drafter = toy_drafter()
    drafter.config = replace(drafter.config, dropout=0.0)  # it depends on who draws first
    save, calls = checkpoint._save, []

    def dying(path: Path, content: Any) -> None:
        save(path, content)
        calls.append(path)
        if len(calls) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint._save = dying
    toy_trainer(Path(config.output_dir), config, drafter=drafter, ranks=ranks).fit()


def test_shards_are_put_together_in_the_background(tmp_path: Path) -> None:
    """One format for every launcher: whole fp32 tensors, and nothing else is left."""
    for launcher in ("ddp", "fsdp"):
        run_distributed(train, 2, sharded(tmp_path / launcher, launcher))
        assert names(tmp_path / launcher / "checkpoints") == NAMES
    replicas, shards = (
        torch.load(
            tmp_path / launcher / "checkpoints" / "1" / "optimizer_state_dict.pt", weights_only=True
        )
        for launcher in ("ddp", "fsdp")
    )
    (found, layout), (expected, same) = tree_flatten(shards), tree_flatten(replicas)
    assert layout == same
    for value, wanted in zip(found, expected, strict=True):
        if isinstance(wanted, torch.Tensor):
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-7)
        else:
            assert value == wanted
    assert {t.dtype for t in shards["master"].values()} == {torch.float32}


@pytest.mark.slow
def test_kill_9_while_shards_are_written(tmp_path: Path) -> None:
    run_distributed(train, 2, sharded(tmp_path / "whole", checkpoint_every_steps=1))
    killed = sharded(tmp_path / "killed", checkpoint_every_steps=1)
    with pytest.raises(ProcessExitedException):
        run_distributed(train, 2, killed, 6)
    root = tmp_path / "killed" / "checkpoints"
    assert CheckpointFolder(root, None).newest() == "step-1"
    assert [name for name in names(root) if ".tmp-" in name]
    run_distributed(train, 2, killed)
    assert not [name for name in names(root) if ".tmp-" in name]
    whole, again = (tmp_path / name / "metrics.jsonl" for name in ("whole", "killed"))
    assert whole.read_text() == again.read_text()

"""A run that was stopped anywhere and started again is the undisturbed run, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.config.schema import Config, FloatType, MuonConfig
from speculators.data.types import PackedBatch
from speculators.training.interrupt import InterruptError
from training.toy import ToyRows, seed_everything, toy_config, toy_trainer

STEPS = 10


class Killed(BaseException):
    """Stands for the end of the process: nothing in the package catches it."""


@dataclass
class StoppingRows(ToyRows):
    """Calls `action` when the n-th row is asked for."""

    stop_at: int = 0
    action: Callable[[], None] = lambda: None

    def iterate(self, epoch: int, first_row: int, **ranks: int) -> Iterator[PackedBatch]:
        for row in super().iterate(epoch, first_row, **ranks):
            if len(self.taken) == self.stop_at:
                self.action()
            yield row


def kill() -> None:
    raise Killed


def finished(run_dir: Path) -> dict[str, Any]:
    """Everything that must not depend on how often the run was stopped."""
    best = (run_dir / "checkpoints" / "checkpoint_best").resolve()
    last = run_dir / "checkpoints" / "1"
    names = ("optimizer_state_dict.pt", "scheduler_state_dict.pt", "rng_state_rank0.pt")
    tensors = {name: torch.load(last / name, weights_only=True) for name in names}
    del tensors["rng_state_rank0.pt"]["python"]  # run-time checks of annotations draw from it
    return {
        "metrics": (run_dir / "metrics.jsonl").read_bytes(),
        "best": best.name,
        "best weights": (best / "model.safetensors").read_bytes(),
        "weights": (last / "model.safetensors").read_bytes(),
        **tensors,
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def assert_same(disturbed: Path, undisturbed: Path) -> None:
    a, b = finished(disturbed), finished(undisturbed)
    assert a["metrics"].decode() == b["metrics"].decode()
    assert [key for key in b if not same(a[key], b[key])] == []


KINDS: dict[str, Callable[[Path], Config]] = {
    "adamw": lambda path: toy_config(path, checkpoint_every_steps=1),
    "adamw, checkpoints every 3 steps": lambda path: toy_config(path, checkpoint_every_steps=3),
    "muon": lambda path: toy_config(
        path, optimizer=MuonConfig(lr=0.02, adamw_lr=0.01), checkpoint_every_steps=2
    ),
    "ema, validation every 2 steps": lambda path: toy_config(
        path, ema_decay=0.9, validate_every_steps=2, keep_last=1
    ),
    "accumulation, fp32 files": lambda path: toy_config(
        path,
        accumulation_steps=2,
        checkpoint_every_steps=1,
        log_every_steps=3,
        checkpoint_dtype=FloatType.float32,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_before_every_row(tmp_path: Path, kind: str) -> None:
    config = KINDS[kind]
    whole = ToyRows()
    toy_trainer(tmp_path / "whole", config(tmp_path), rows=whole).fit()
    for row in range(1, len(whole.taken) + 1):
        run_dir = tmp_path / f"stopped{row}"
        with pytest.raises(Killed):
            toy_trainer(
                run_dir, config(tmp_path), rows=StoppingRows(stop_at=row, action=kill)
            ).fit()
        toy_trainer(run_dir, config(tmp_path)).fit()
        assert_same(run_dir, tmp_path / "whole")


def test_stopped_again_and_again(tmp_path: Path) -> None:
    def config() -> Config:
        return toy_config(tmp_path, checkpoint_every_steps=1, ema_decay=0.5)

    toy_trainer(tmp_path / "whole", config()).fit()
    starts = 0
    while True:
        starts += 1
        try:
            toy_trainer(
                tmp_path / "stopped", config(), rows=StoppingRows(stop_at=2, action=kill)
            ).fit()
            break
        except Killed:
            continue
    assert starts == STEPS
    assert_same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("row", [2, 5])
def test_a_signal_saves_after_the_step(tmp_path: Path, number: signal.Signals, row: int) -> None:
    toy_trainer(tmp_path / "whole").fit()
    rows = StoppingRows(stop_at=row, action=lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    with pytest.raises(InterruptError) as stopped:
        toy_trainer(tmp_path / "stopped", rows=rows).fit()
    assert signal.getsignal(number) is before
    assert stopped.value.exit_code == 128 + number
    name = "0" if row == 5 else f"step-{row}"
    assert str(stopped.value) == (
        f"stopped by {number.name} after step {row}; saved checkpoints/{name}; "
        "the same command goes on from there"
    )
    assert len(rows.taken) == row
    toy_trainer(tmp_path / "stopped").fit()
    assert_same(tmp_path / "stopped", tmp_path / "whole")


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
from training.toy import toy_config, toy_trainer
import speculators.training.checkpoint as checkpoint

save, calls = checkpoint._save, []

def save_some(path, content):
    save(path, content)
    calls.append(path)
    if len(calls) == 11:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint._save = save_some
run_dir = Path(sys.argv[1])
toy_trainer(run_dir, toy_config(run_dir.parent, checkpoint_every_steps=2)).fit()
"""


def test_kill_9_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    def config() -> Config:
        return toy_config(tmp_path, checkpoint_every_steps=2)

    run_dir, root = tmp_path / "killed", Path(__file__).parents[2]
    toy_trainer(tmp_path / "whole", config()).fit()
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    process = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, str(run_dir)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert [name for name in names if ".tmp-" not in name] == [
        "0",
        "checkpoint_best",
        "step-2",
        "step-4",
    ]
    (unfinished,) = [name for name in names if ".tmp-" in name]
    assert unfinished.startswith("step-6.tmp-")
    toy_trainer(run_dir, config()).fit()
    assert not (run_dir / "checkpoints" / unfinished).exists()
    assert_same(run_dir, tmp_path / "whole")


def test_lines_of_a_run_that_had_saved_nothing_are_cut(tmp_path: Path) -> None:
    toy_trainer(tmp_path / "whole").fit()
    with pytest.raises(Killed):
        toy_trainer(tmp_path / "stopped", rows=StoppingRows(stop_at=4, action=kill)).fit()
    assert (tmp_path / "stopped" / "metrics.jsonl").read_text().count("\n") == 1
    toy_trainer(tmp_path / "stopped").fit()
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_validation_leaves_training_as_it_was(tmp_path: Path) -> None:
    def metrics(run_dir: Path) -> list[str]:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        return [line for line in lines if '"kind": "train"' in line]

    toy_trainer(tmp_path / "often", toy_config(tmp_path, validate_every_steps=1)).fit()
    toy_trainer(tmp_path / "never", validate=None).fit()
    assert metrics(tmp_path / "often") == metrics(tmp_path / "never")
    weights = [
        (tmp_path / name / "checkpoints" / "1" / "model.safetensors").read_bytes()
        for name in ("often", "never")
    ]
    assert weights[0] == weights[1]


def test_another_random_state_at_the_start_does_matter_here(tmp_path: Path) -> None:
    """Guards the tests above: the toy does draw from the global states."""
    toy_trainer(tmp_path / "a").fit()
    trainer = toy_trainer(tmp_path / "b")
    seed_everything(1)
    trainer.fit()
    a, b = ((tmp_path / n / "metrics.jsonl").read_text() for n in ("a", "b"))
    assert a != b

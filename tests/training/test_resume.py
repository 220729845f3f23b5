"""What may change between two starts of a run, and what is said about it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from speculators.config.schema import MuonConfig
from speculators.console import open_console
from speculators.errors import CheckpointError
from speculators.training.result import TrainResult
from training.toy import ToyRows, toy_config, toy_drafter, toy_trainer


def start(run_dir: Path, config: Any = None, **arguments: Any) -> tuple[TrainResult, str]:
    screen = open_console(file=io.StringIO(), width=300)
    result = toy_trainer(run_dir, config, console=screen, **arguments).fit()
    assert isinstance(screen.file, io.StringIO)
    return result, screen.file.getvalue()


def refused(run_dir: Path, config: Any = None, **arguments: Any) -> str:
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError) as error:
        start(run_dir, config, **arguments)
    assert {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()} == before
    return str(error.value)


def head(run_dir: Path, name: str = "1") -> str:
    return (
        f"{run_dir}/checkpoints/{name}: was trained with other settings; go back to the saved "
        "values, choose another output_dir, or list the keys in training.allow_changes\n"
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    toy_trainer(tmp_path / "run", fingerprints={"data": "d1", "vocabulary": "v1"}).fit()
    return tmp_path / "run"


def test_a_finished_run_trains_no_more(run_dir: Path) -> None:
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    rows = ToyRows()
    result, screen = start(run_dir, rows=rows)
    assert (result.steps, result.epochs, result.tokens) == (10, 2.0, 179)
    assert result.best_checkpoint == run_dir / "checkpoints" / "1"
    assert result.seconds > 0
    assert result.tokens_per_second > 0
    assert result.peak_memory_bytes > 2**20
    assert rows.taken == []
    assert {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()} == before
    assert screen.splitlines()[-1] == (
        f"{run_dir}: training is complete (10 steps); nothing to do. More steps: raise "
        "training.max_steps or training.epochs; a new run: choose another output_dir"
    )


def test_changed_content_is_refused(run_dir: Path) -> None:
    text = refused(run_dir, fingerprints={"data": "d2", "vocabulary": "v1"})
    assert text == head(run_dir) + '  fingerprint.data: saved "d1", now "d2"'
    text = refused(run_dir, rows=ToyRows(num_rows=6))
    assert text == head(run_dir) + '  fingerprint.rows: saved "toy-5-0", now "toy-6-0"'


def test_changed_settings_are_refused_all_at_once(run_dir: Path) -> None:
    config = toy_config(
        run_dir,
        optimizer=MuonConfig(lr=0.01, adamw_lr=0.01),
        ema_decay=0.9,
        sequence_length=48,
        accumulation_steps=2,
    )
    config.seed = 6
    assert refused(run_dir, config, drafter=toy_drafter(depth=3)) == head(run_dir) + "\n".join(
        [
            '  optimizer.name: saved "adamw", now "muon"',
            "  rows_per_step: saved 1, now 2",
            "  seed: saved 5, now 6",
            "  speculator.depth: saved 2, now 3",
            "  training.ema_decay: saved null, now 0.9",
            "  training.sequence_length: saved 24, now 48",
        ]
    )


def test_named_changes_are_allowed_and_shown(run_dir: Path) -> None:
    config = toy_config(run_dir, epochs=3, allow_changes=["fingerprint", "training.clip_norm"])
    result, screen = start(run_dir, config, fingerprints={"data": "d2", "vocabulary": "v2"})
    assert result.steps == 15
    assert screen.splitlines()[:4] == [
        "changed since 1: training.epochs: saved 2, now 3",
        'changed since 1: fingerprint.data: saved "d1", now "d2"',
        'changed since 1: fingerprint.vocabulary: saved "v1", now "v2"',
        "going on from checkpoints/1: step 10",
    ]


def test_harmless_changes_are_taken_over_and_shown(run_dir: Path) -> None:
    config = toy_config(run_dir, max_steps=12, log_every_steps=1)
    config.optimizer.lr = 0.5
    config.tracker.timeout_seconds = 5.0
    result, screen = start(run_dir, config)
    assert screen.splitlines()[:4] == [
        "changed since 1: optimizer.lr: saved 0.01, now 0.5",
        "changed since 1: training.log_every_steps: saved 2, now 1",
        "changed since 1: training.max_steps: saved null, now 12",
        "going on from checkpoints/1: step 10",
    ]
    last = (run_dir / "metrics.jsonl").read_text().splitlines()[-2]
    assert json.loads(last)["step"] == 12
    expected = 0.5 * (1 + math.cos(0.9 * math.pi)) / 2  # nine of ten steps after the warm-up
    assert json.loads(last)["learning_rate"] == pytest.approx(expected)
    assert result.epochs == pytest.approx(2.4)
    assert result.last_checkpoint == run_dir / "checkpoints" / "2"


def test_the_end_of_an_epoch_whose_name_is_taken_is_saved_by_step(run_dir: Path) -> None:
    start(run_dir, toy_config(run_dir, max_steps=12))
    result, _ = start(run_dir, toy_config(run_dir, epochs=3))
    assert result.last_checkpoint == run_dir / "checkpoints" / "step-15"


def test_a_run_that_may_not_resume_does_not_overwrite(run_dir: Path) -> None:
    text = refused(run_dir, toy_config(run_dir, resume=False))
    assert text == (
        f"training.resume=false: {run_dir}/checkpoints holds a run already (newest: 1); choose "
        "another output_dir, or let it go on with training.resume=true"
    )


def test_a_damaged_checkpoint_is_passed_over(run_dir: Path) -> None:
    (run_dir / "checkpoints" / "1" / "optimizer_state_dict.pt").write_bytes(b"")
    result, screen = start(run_dir)
    assert screen.splitlines()[:2] == [
        "checkpoints/1: is not complete, so it is left alone",
        "going on from checkpoints/0: step 5",
    ]
    assert result.last_checkpoint == run_dir / "checkpoints" / "step-10"


def test_the_link_to_the_best_is_mended(run_dir: Path) -> None:
    link = run_dir / "checkpoints" / "checkpoint_best"
    link.unlink()
    link.symlink_to("0")
    start(run_dir, toy_config(run_dir, epochs=3, max_steps=11))
    assert link.resolve().name in {"1", "2"}
    assert (link / "config.json").exists()

"""Sweeps as people start them: the stage is replaced, Hydra, launchers and folders are real."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """\
import dataclasses, sys
from speculators.cli import main
from speculators.cli.commands import COMMANDS

COMMANDS["train"] = dataclasses.replace(COMMANDS["train"], module="sweep.stage", spread_module=None)
if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
"""
HEAVY = "the optuna extra is large, so it is no part of dev"
QUESTION = """\
defaults: [sweep_base, _self_]
hydra: {sweeper: {params: {optimizer.lr: '0.1,0.3', seed: '0,1'}}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "questions").mkdir()
    (tmp_path / "questions" / "rate.yaml").write_text(QUESTION)
    return tmp_path


def start(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    named = () if "-m" in arguments else ("--config-dir", "questions", "--config-name", "rate")
    return subprocess.run(
        [sys.executable, "program.py", *named, *arguments],
        cwd=place,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def runs(place: Path, name: str = "rate") -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for path in sorted((place / "outputs" / "sweeps" / name).glob("*/job.json")):
        record = json.loads(path.read_text())
        record["attempts"] = len((path.parent / "attempts.txt").read_text())
        key = (record["overrides"]["optimizer.lr"], record["overrides"]["seed"])
        assert key not in found
        found[key] = record
    return found


def board(place: Path, name: str = "rate") -> list[dict[str, str]]:
    path = place / "outputs" / "sweeps" / name / "leaderboard.csv"
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_sweep_ends_with_a_leaderboard_and_is_not_done_twice(place: Path) -> None:
    done = start(place)
    assert (done.returncode, done.stderr) == (0, "")
    first = runs(place)
    assert {key: record["status"] for key, record in first.items()} == dict.fromkeys(
        [("0.1", "0"), ("0.1", "1"), ("0.3", "0"), ("0.3", "1")], "finished"
    )
    rows = board(place)
    assert [(row["rank"], row["optimizer.lr"], row["seeds"]) for row in rows] == [
        ("1", "0.3", "0 1"),
        ("2", "0.1", "0 1"),
    ]
    assert float(rows[0]["acceptance_length_mean"]) == pytest.approx(1.305)
    assert float(rows[1]["acceptance_length_to_the_best"]) == pytest.approx(-0.2)
    text = (place / "outputs" / "sweeps" / "rate" / "leaderboard.md").read_text()
    assert "| 1 | 0.3 | 1.305 ± 0.007 |  | 1.695 ± 0.007 | 2 |" in text
    assert (place / "outputs" / "sweeps" / "rate" / "leaderboard.png").stat().st_size > 1000
    assert "acceptance" in done.stdout

    again = start(place, "seed=0,1,2")  # every number moves
    assert again.returncode == 0
    assert again.stdout.count("finished before, not run again") == 4
    assert {record["attempts"] for record in runs(place).values()} == {1}
    assert [row["seeds"] for row in board(place)] == ["0 1 2", "0 1 2"]


def test_what_fails_stops_nothing_and_is_tried_again(place: Path) -> None:
    done = start(place, "seed=7,8,1", "optimizer.lr=0.1")
    assert done.returncode == 7
    states = {key: record["status"] for key, record in runs(place).items()}
    assert states == {("0.1", "7"): "failed", ("0.1", "8"): "failed", ("0.1", "1"): "finished"}
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [line.partition("_")[2][-50:].partition(": ")[2] for line in errors[:2]] == [
        "rows.jsonl:7: not JSON",
        "RuntimeError: a bug",
    ]
    assert errors[2] == "error: 2 of 3 runs did not finish; the same command tries again"
    assert 'raise RuntimeError("a bug")' in done.stderr  # a bug keeps its traceback
    assert "raise RuntimeError" in runs(place)["0.1", "8"]["traceback"]
    text = (place / "outputs" / "sweeps" / "rate" / "leaderboard.md").read_text()
    assert "Not finished:" in text
    assert "rows.jsonl:7: not JSON" in text
    (place / "outputs" / "sweeps" / "rate" / "mended").touch()
    again = start(place, "seed=7,8,1", "optimizer.lr=0.1")
    assert (again.returncode, again.stderr) == (0, "")
    attempts = {key[1]: record["attempts"] for key, record in runs(place).items()}
    assert attempts == {"7": 2, "8": 2, "1": 1}


def test_a_signal_ends_the_sweep_and_the_next_start_goes_on(place: Path) -> None:
    done = start(place, "seed=0,9,1", "optimizer.lr=0.1")
    assert done.returncode == 143
    assert done.stderr == (
        "error: stopped by SIGTERM after step 5; saved checkpoints/step-5; the same command goes "
        "on from there\n"
    )
    assert {key[1]: record["status"] for key, record in runs(place).items()} == {
        "0": "finished",
        "9": "stopped",
    }
    (place / "outputs" / "sweeps" / "rate" / "mended").touch()
    assert start(place, "seed=0,9,1", "optimizer.lr=0.1").returncode == 0
    attempts = {key[1]: record["attempts"] for key, record in runs(place).items()}
    assert attempts == {"0": 1, "9": 2, "1": 1}


@pytest.mark.parametrize(
    "launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.slow)]
)
def test_launchers(place: Path, launcher: str) -> None:
    extra = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    done = start(place, f"hydra/launcher={launcher}", *extra, "seed=0,7", "optimizer.lr=0.1,0.3")
    assert done.returncode == 7, done.stderr
    states = {key: record["status"] for key, record in runs(place).items()}
    assert states == {
        ("0.1", "0"): "finished",
        ("0.1", "7"): "failed",
        ("0.3", "0"): "finished",
        ("0.3", "7"): "failed",
    }
    assert done.stderr.splitlines()[-1] == (
        "error: 2 of 4 runs did not finish; the same command tries again"
    )
    assert [row["optimizer.lr"] for row in board(place)] == ["0.3", "0.1"]


def test_a_search_maximises_and_repeats_itself(place: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason=HEAVY)
    axes = ("optimizer.lr=interval(0.1,0.5)", "seed=0")
    bare = start(place, "hydra/sweeper=optuna", *axes)
    assert bare.returncode == 2
    assert bare.stderr == (
        "error: hydra.sweeper.direction=minimize: acceptance_length is to be maximized: give "
        "hydra.sweeper.direction=maximize\n"
    )
    assert not (place / "outputs").exists()
    settings = (
        "hydra/sweeper=optuna",
        "hydra.sweeper.direction=maximize",
        "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.sampler.seed=0",
        *axes,
    )
    assert start(place, *settings, "hydra.sweeper.n_trials=3").returncode == 0
    first = runs(place)
    assert len(first) == 3
    more = start(place, *settings, "hydra.sweeper.n_trials=5")
    assert more.stdout.count("finished before, not run again") == 3
    assert {record["attempts"] for record in runs(place).values()} == {1}
    assert runs(place).keys() > first.keys()
    assert len(runs(place)) == 5


def test_a_search_whose_runs_fail_says_why(place: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason=HEAVY)
    done = start(
        place,
        *("hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_jobs=1"),
        *("optimizer.lr=interval(0.1,0.5)", "seed=7", "hydra.sweeper.n_trials=2"),
    )
    assert done.returncode == 7
    assert "rows.jsonl:7: not JSON" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_any_multirun_has_a_ledger(place: Path) -> None:
    folder = f"hydra.sweep.dir={place / 'outputs' / 'sweeps' / 'mine'}"
    assert start(place, "-m", "optimizer.lr=0.2,0.4", "seed=1", folder).returncode == 0
    again = start(place, "-m", "optimizer.lr=0.4,0.6", "seed=1", folder)
    assert again.stdout.count("finished before") == 1
    assert [row["optimizer.lr"] for row in board(place, "mine")] == ["0.6", "0.4", "0.2"]


def test_a_folder_of_another_run_is_left_alone(place: Path) -> None:
    numbered = ("-m", "seed=1", "hydra.sweep.dir=outputs/sweeps/mine", "hydra.sweep.subdir=one")
    assert start(place, *numbered, "optimizer.lr=0.2").returncode == 0
    other = start(place, *numbered, "optimizer.lr=0.3")
    assert other.returncode == 2
    assert "holds another run (its settings differ)" in other.stderr
    assert runs(place, "mine")["0.2", "1"]["status"] == "finished"


def test_a_sweep_must_have_something_to_compare(place: Path) -> None:
    done = start(place, "evaluation.enabled=false")
    assert done.returncode == 2
    assert done.stderr == (
        "error: sweep.objective=acceptance_length: nothing is decoded with "
        "evaluation.enabled=false: compare by validation, sweep.objective=best_value\n"
    )
    done = start(place, "sweep.objective=forecast_speedup")
    assert done.returncode == 0
    assert [row["optimizer.lr"] for row in board(place)] == ["0.1", "0.3"]

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from speculators.config.schema import TrackerConfig
from speculators.errors import ConfigError
from speculators.training.state import read_state
from speculators.training.trackers import NoTracker, ShieldedTracker, Tracker, open_tracker
from training.toy import toy_config, toy_trainer


class Recorder:
    """A tracker that remembers, and fails where it is told to."""

    def __init__(self, failing: str = "") -> None:
        self.calls: list[tuple[str, Any]] = []
        self.failing = failing

    def start(
        self, *, run_dir: Path, settings: Mapping[str, Any], run_id: str | None
    ) -> str | None:
        self._call("start", run_id)
        return run_id or "run-1"

    def log(self, values: Mapping[str, Any]) -> None:
        self._call("log", dict(values))

    def finish(self, *, failed: bool) -> None:
        self._call("finish", failed)

    def _call(self, name: str, value: Any) -> None:
        self.calls.append((name, value))
        if name == self.failing:
            raise ConnectionError("no route to host")


def test_a_tracker_sees_every_line_and_the_id_is_kept(tmp_path: Path) -> None:
    first, second = Recorder(), Recorder()
    toy_trainer(tmp_path, tracker=first).fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [line for kind, line in first.calls if kind == "log"]
    assert [line for line in logged if line["kind"] != "timing"] == lines
    # What a clock decides is told as well, apart from what does not depend on one.
    timing = [line["step"] for line in logged if line["kind"] == "timing"]
    assert timing == [line["step"] for line in lines if line["kind"] == "train"]
    assert (first.calls[0], first.calls[-1]) == (("start", None), ("finish", False))
    assert read_state(tmp_path / "checkpoints" / "1").tracker_run_id == "run-1"
    toy_trainer(tmp_path, toy_config(tmp_path, max_steps=12), tracker=second).fit()
    assert second.calls[0] == ("start", "run-1")


def test_a_tracker_hears_of_failure(tmp_path: Path) -> None:
    def fail(drafter: Any) -> dict[str, float]:
        raise RuntimeError("out of memory")

    tracker = Recorder()
    with pytest.raises(RuntimeError, match="out of memory"):
        toy_trainer(tmp_path, tracker=tracker, validate=fail).fit()
    assert tracker.calls[-1] == ("finish", True)


@pytest.mark.parametrize("failing", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_left_behind_with_one_warning(tmp_path: Path, failing: str) -> None:
    toy_trainer(tmp_path / "whole").fit()
    screen, tracker = io.StringIO(), Recorder(failing)
    result = toy_trainer(
        tmp_path / "run", tracker=tracker, console=Console(file=screen, width=300)
    ).fit()
    assert result.steps == 10
    assert screen.getvalue().count("tracker:") == 1
    assert (
        "tracker: ConnectionError: no route to host; training goes on without it, "
        "metrics.jsonl has everything\n"
    ) in screen.getvalue()
    assert [name for name, _ in tracker.calls].count(failing) == 1
    metrics = [(tmp_path / n / "metrics.jsonl").read_text() for n in ("whole", "run")]
    assert metrics[0] == metrics[1]


def test_trackers_by_name() -> None:
    assert isinstance(open_tracker(TrackerConfig(name="none")), NoTracker)
    assert isinstance(ShieldedTracker(NoTracker(), print), Tracker)
    with pytest.raises(ConfigError, match=r"^tracker.name=mlflow: allowed: none, wandb$"):
        open_tracker(TrackerConfig(name="mlflow"))


def test_wandb_offline_takes_a_run_and_its_continuation(tmp_path: Path) -> None:
    def tracker() -> Tracker:
        return open_tracker(TrackerConfig(name="wandb", project="toy", mode="offline"))

    screen = io.StringIO()
    console = Console(file=screen, width=300)
    toy_trainer(tmp_path / "run", tracker=tracker(), console=console).fit()
    run_id = read_state(tmp_path / "run" / "checkpoints" / "1").tracker_run_id
    config = toy_config(tmp_path / "run", max_steps=12)
    toy_trainer(tmp_path / "run", config, tracker=tracker(), console=console).fit()
    assert "tracker:" not in screen.getvalue()
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{run_id}.wandb"] * 2
    assert all(b"train/gradient_norm" in file.read_bytes() for file in files)

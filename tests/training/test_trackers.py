"""Trackers are shown a run, once, whatever becomes of it or of them; the run does not notice."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from speculators import __version__
from speculators.config.schema import MlflowConfig, TrackerConfig, WandbConfig
from speculators.console import open_console
from speculators.training.state import read_state
from speculators.training.trackers import RunCard, Tracker, Tracking, open_trackers
from speculators.training.trackers.base import markdown, numbers
from speculators.training.trackers.guarded import THREAD, GuardedTracker
from training.toy import toy_config, toy_trainer, validate_toy

Call = tuple[str, Any]
# A library that waits for its hanging server when the interpreter ends.
HANGING = """
import atexit, threading, time
from speculators.cli import main
from speculators.training.trackers.guarded import GuardedTracker
atexit.register(time.sleep, 600)
GuardedTracker("x", None, 1.0, print).do(lambda tracker: time.sleep(600))
raise SystemExit(main(["--version"]))
"""
AFTERWARDS = "training goes on without it, metrics.jsonl has everything"


class Recorder:
    """A tracker that remembers, and fails or hangs where it is told to."""

    def __init__(self, failing: str = "", hanging: str = "") -> None:
        self.calls: list[Call] = []
        self.card: RunCard | None = None
        self.failing, self.hanging = failing, hanging
        self.released = threading.Event()

    def start(self, card: RunCard) -> str:
        self.card = card
        self._call("start", card.run_id)
        return card.run_id or "run-1"

    def log(self, line: Mapping[str, Any]) -> None:
        self._call("log", dict(line))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        self._call("table", (name, list(rows), step))

    def image(self, name: str, path: Path, step: int) -> None:
        self._call("image", (name, path.name, step))

    def finish(self, *, failed: bool) -> None:
        self._call("finish", failed)

    def lines(self) -> list[dict[str, Any]]:
        """What it was shown, what a clock decides left out."""
        return [x for kind, x in self.calls if kind == "log" and x["kind"] != "timing"]

    def _call(self, name: str, value: Any) -> None:
        self.calls.append((name, value))
        if name == self.failing:
            raise ConnectionError("no route to host\nand more")
        if name == self.hanging:
            assert self.released.wait(60)


def fit(run_dir: Path, tracker: Tracker | None = None, screen: Any = None, **changes: Any) -> None:
    """Train the toy, or go on with it; `changes` go to the trainer."""
    console = open_console(file=screen or io.StringIO(), width=300)
    timeout = changes.pop("timeout", 60.0)
    trackers = {} if tracker is None else {"recorder": tracker}
    with Tracking(trackers, timeout) as tracking:
        toy_trainer(run_dir, tracking=tracking, console=console, **changes).fit()


def recorded(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


class DyingValidation:
    """Breaks the run down when it is asked for the `deadly` time."""

    def __init__(self, deadly: int) -> None:
        self.left = deadly

    def __call__(self, drafter: Any) -> Mapping[str, Any]:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("out of memory")
        return validate_toy(drafter)


def test_a_tracker_sees_every_line_and_the_id_is_kept(tmp_path: Path) -> None:
    first, second = Recorder(), Recorder()
    (tmp_path / "provenance.json").write_text('{"git": {"commit": "abc"}}')
    fit(tmp_path, first)
    assert first.lines() == recorded(tmp_path)
    # What a clock decides is told as well, apart from what does not depend on one.
    timing = [x["step"] for kind, x in first.calls if kind == "log" and x["kind"] == "timing"]
    assert timing == [line["step"] for line in recorded(tmp_path) if line["kind"] == "train"]
    assert (first.calls[0], first.calls[-1]) == (("start", None), ("finish", False))
    assert first.card is not None
    assert first.card.settings["optimizer.lr"] == 0.01
    assert first.card.provenance == {"git": {"commit": "abc"}}
    assert read_state(tmp_path / "checkpoints" / "1").tracker_run_ids == {"recorder": "run-1"}
    fit(tmp_path, second, config=toy_config(tmp_path, max_steps=12))
    assert second.calls[0] == ("start", "run-1")
    assert [*first.lines(), *second.lines()] == recorded(tmp_path)


def test_a_tracker_hears_of_failure(tmp_path: Path) -> None:
    tracker = Recorder()
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, tracker, validate=DyingValidation(1))
    assert tracker.calls[-1] == ("finish", True)


@pytest.mark.parametrize("failing", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_left_behind_with_one_warning(tmp_path: Path, failing: str) -> None:
    fit(tmp_path / "whole")
    screen, tracker = io.StringIO(), Recorder(failing)
    fit(tmp_path / "run", tracker, screen)
    assert screen.getvalue().count("tracker=") == 1
    line = f"tracker=recorder: ConnectionError: no route to host; {AFTERWARDS}\n"
    assert line in screen.getvalue()
    assert [name for name, _ in tracker.calls].count(failing) == 1
    assert tracker.calls[-1][0] == failing
    metrics = [(tmp_path / n / "metrics.jsonl").read_bytes() for n in ("whole", "run")]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("hanging", ["start", "log", "finish"])
def test_a_tracker_that_hangs_is_left_behind_with_one_warning(tmp_path: Path, hanging: str) -> None:
    fit(tmp_path / "whole")
    screen, tracker = io.StringIO(), Recorder(hanging=hanging)
    try:
        fit(tmp_path / "run", tracker, screen, timeout=0.3)
        text = "no answer for 0.3 seconds (tracker.timeout_seconds)"
        assert f"tracker=recorder: {text}; {AFTERWARDS}\n" in screen.getvalue()
        assert screen.getvalue().count("tracker=") == 1
        metrics = [(tmp_path / n / "metrics.jsonl").read_bytes() for n in ("whole", "run")]
        assert metrics[0] == metrics[1]
        assert (tmp_path / "run" / "checkpoints" / "1").is_dir()
        assert any(thread.name.startswith(THREAD) for thread in threading.enumerate())
    finally:
        tracker.released.set()


def test_a_program_ends_although_a_tracker_hangs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


def test_one_tracker_dies_and_the_other_sees_everything(tmp_path: Path) -> None:
    dying, living, screen = Recorder("log"), Recorder(), io.StringIO()
    with Tracking({"dying": dying, "living": living}) as tracking:
        console = open_console(file=screen, width=300)
        toy_trainer(tmp_path, tracking=tracking, console=console).fit()
    assert living.lines() == recorded(tmp_path)
    assert living.calls[-1] == ("finish", False)
    assert len(dying.lines()) == 1
    assert "tracker=dying: ConnectionError" in screen.getvalue()
    assert "tracker=living" not in screen.getvalue()


def test_a_resumed_run_is_one_run_without_a_step_twice(tmp_path: Path) -> None:
    """Steps after the checkpoint were shown before the run broke down; they are not shown again."""
    settings: dict[str, Any] = {
        "checkpoint_every_steps": 3,
        "validate_every_steps": 2,
        "log_every_steps": 1,
    }
    first, second = Recorder(), Recorder()
    config = toy_config(tmp_path, **settings)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, first, config=config, validate=DyingValidation(4))
    shown = first.lines()
    checkpoint = max(int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step-*"))
    assert max(line["step"] for line in shown) > checkpoint
    fit(tmp_path, second, config=config)
    assert second.calls[0] == ("start", "run-1")
    assert [*shown, *second.lines()] == recorded(tmp_path)
    fit(tmp_path / "whole", config=toy_config(tmp_path / "whole", **settings))
    assert recorded(tmp_path) == recorded(tmp_path / "whole")


def test_a_tracker_that_comes_late_is_shown_what_it_lacks(tmp_path: Path) -> None:
    fit(tmp_path)
    late = Recorder()
    fit(tmp_path, late, config=toy_config(tmp_path, max_steps=12))
    assert late.lines() == recorded(tmp_path)


def test_a_tracker_that_died_catches_up_at_the_next_start(tmp_path: Path) -> None:
    dying, living = Recorder("log"), Recorder()
    fit(tmp_path, dying)
    fit(tmp_path, living, config=toy_config(tmp_path, max_steps=12))
    assert living.calls[0] == ("start", "run-1")
    assert living.lines() == recorded(tmp_path)


def test_the_checkpoint_remembers_where_a_lost_folder_does_not(tmp_path: Path) -> None:
    first, second = Recorder(), Recorder()
    fit(tmp_path, first)
    (tmp_path / "trackers" / "recorder.json").unlink()
    fit(tmp_path, second, config=toy_config(tmp_path, max_steps=12))
    assert second.calls[0] == ("start", "run-1")
    assert [*first.lines(), *second.lines()] == recorded(tmp_path)


def test_tables_and_images_are_shown_once(tmp_path: Path) -> None:
    def show(tracker: Tracker) -> None:
        with Tracking({"recorder": tracker}) as tracking:
            trainer = toy_trainer(tmp_path, toy_config(tmp_path, max_steps=12), tracking=tracking)
            trainer.fit()
            tracking.table("checkpoints", [{"step": 1}], 10)
            tracking.image("plots/loss", tmp_path / "loss.png", 10)

    first, second = Recorder(), Recorder()
    show(first)
    assert [call for call in first.calls if call[0] in ("table", "image")] == [
        ("table", ("checkpoints", [{"step": 1}], 10)),
        ("image", ("plots/loss", "loss.png", 10)),
    ]
    show(second)  # complete: nothing is opened again
    assert second.calls == []


def test_order_is_kept_and_nobody_waits() -> None:
    seen: list[int] = []
    gate = threading.Event()
    guard = GuardedTracker("recorder", Recorder(), 60.0, lambda line: None)

    def wait(tracker: Tracker) -> None:
        assert gate.wait(60)

    guard.do(wait)
    for number in range(100):
        guard.do(lambda tracker, number=number: seen.append(number))
    assert seen == []
    gate.set()
    guard.close()
    assert seen == list(range(100))


def test_a_tracker_that_leaves_the_program_does_not_take_it_along() -> None:
    said: list[str] = []

    def leave(tracker: Tracker) -> None:
        raise SystemExit(1)

    guard = GuardedTracker("recorder", Recorder(), 60.0, said.append)
    guard.do(leave)
    guard.close()
    assert said == [f"tracker=recorder: SystemExit: 1; {AFTERWARDS}"]


def test_numbers_of_a_line() -> None:
    line = {
        "step": 3, "epoch": 0, "kind": "validation", "loss": 2, "none": None, "flag": True,
        "nan": float("nan"), "text": "x", "per_position": [0.5, None, 0.25],
    }  # fmt: skip
    assert numbers(line) == {
        "validation/loss": 2.0,
        "validation/per_position/1": 0.5,
        "validation/per_position/3": 0.25,
    }


def test_tables_as_text() -> None:
    rows = [{"step": 1, "loss": 0.123456, "best": None}, {"step": 2, "loss": 1.0, "best": "best"}]
    assert markdown(rows).splitlines() == [
        "| step | loss | best |",
        "| --- | --- | --- |",
        "| 1 | 0.1235 |  |",
        "| 2 | 1 | best |",
    ]
    assert markdown([]) == ""


def test_trackers_by_name() -> None:
    assert TrackerConfig().chosen() == {}
    config = TrackerConfig(wandb=WandbConfig(), mlflow=MlflowConfig())
    assert list(config.chosen()) == ["wandb", "mlflow"]
    with open_trackers(config) as tracking:
        assert tracking.run_ids() == {}
    assert isinstance(Recorder(), Tracker)

"""One line of metrics, to everyone who wants it: file, tracker and screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from speculators.training.metrics import METRICS_FILE, TIMING_FILE, JsonLines
from speculators.training.progress import TrainingProgress
from speculators.training.state import Position, TrainerState
from speculators.training.trackers import ShieldedTracker, Tracker


class Journal:
    """The records of one start of a run, from its first new step to its end.

    Args:
        run_dir: where the files lie; lines of steps that will be repeated are cut off.
        state: where the run stands; its tracker id is brought up to date.
        total_steps: of the whole run.
        tracker: may fail without stopping anything.
        console: the screen.
    """

    def __init__(
        self,
        run_dir: Path,
        state: TrainerState,
        total_steps: int,
        tracker: Tracker,
        console: Console | None,
    ) -> None:
        step = state.position.step
        self._metrics = JsonLines(run_dir / METRICS_FILE, step)
        self._timing = JsonLines(run_dir / TIMING_FILE, step)
        self._progress = TrainingProgress(total_steps, step, console)
        self._tracker = ShieldedTracker(tracker, warn=self._progress.say)
        state.tracker_run_id = self._tracker.start(
            run_dir=run_dir, settings=state.settings, run_id=state.tracker_run_id
        )

    def __enter__(self) -> Journal:
        """Start drawing."""
        self._progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Close everything; the tracker is told whether training raised."""
        self._progress.__exit__(None, None, None)
        self._tracker.finish(failed=kind is not None)
        self._metrics.close()
        self._timing.close()

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        self._progress.advance(step)

    def say(self, text: str) -> None:
        """Print one line for people."""
        self._progress.say(text)

    def status(self, text: str) -> None:
        """Show how training stands at this moment; nothing is recorded."""
        self._progress.status(text)

    def metrics(self, kind: str, position: Position, values: Mapping[str, Any]) -> None:
        """Record what is a function of configuration, data and seed alone."""
        line = {"step": position.step, "epoch": position.epoch, "kind": kind, **values}
        self._metrics.write(line)
        self._tracker.log(line)
        self._progress.show(line)

    def timing(self, kind: str, state: TrainerState, values: Mapping[str, Any]) -> None:
        """Record durations and rates, which no two runs share; trackers get those of steps."""
        self._timing.write({"step": state.position.step, "kind": kind, **values})
        if kind == "step":
            position = state.position
            place = {"step": position.step, "epoch": position.epoch, "kind": "timing"}
            self._tracker.log({**place, **values})

    def flush(self) -> None:
        """Bring every line to the disk; called before a checkpoint is written."""
        self._metrics.flush()
        self._timing.flush()


class NoJournal:
    """Takes the place of a `Journal` in processes that record nothing."""

    def __enter__(self) -> NoJournal:
        """Nothing to open."""
        return self

    def __exit__(self, *rest: object) -> None:
        """Nothing to close."""

    def advance(self, step: int) -> None:
        """Draw nothing."""

    def say(self, text: str) -> None:
        """Print nothing."""

    def status(self, text: str) -> None:
        """Show nothing."""

    def metrics(self, kind: str, position: Position, values: Mapping[str, Any]) -> None:
        """Record nothing."""

    def timing(self, kind: str, state: TrainerState, values: Mapping[str, Any]) -> None:
        """Record nothing."""

    def flush(self) -> None:
        """Nothing is held back."""

"""All trackers of a run. Nothing they do stops it, or changes what is trained and recorded."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from speculators.config.schema import TrackerConfig
from speculators.training.trackers.base import Row, RunCard, Tracker
from speculators.training.trackers.delivery import Delivery, place_of, read_lines
from speculators.training.trackers.guarded import GuardedTracker
from speculators.training.trackers.mlflow import MlflowTracker
from speculators.training.trackers.tensorboard import TensorboardTracker
from speculators.training.trackers.trackio import TrackioTracker
from speculators.training.trackers.wandb import WandbTracker

_TRACKERS: dict[str, Callable[[Any], Tracker]] = {
    "mlflow": MlflowTracker,
    "tensorboard": TensorboardTracker,
    "trackio": TrackioTracker,
    "wandb": WandbTracker,
}


class Tracking:
    """Shows a run to its trackers, each in a thread of its own.

    It is closed by whoever made it (`with`), after everything has been shown; trackers are told
    whether the run raised.

    Args:
        trackers: name -> tracker; none: nothing is shown to anybody.
        timeout_seconds: a tracker that is at one thing for so long is given up.
    """

    def __init__(
        self, trackers: Mapping[str, Tracker] | None = None, timeout_seconds: float = 60.0
    ) -> None:
        self._trackers = dict(trackers or {})
        self._timeout = timeout_seconds
        self._shown: list[_Shown] = []

    def start(
        self,
        run_dir: Path,
        settings: Mapping[str, Any],
        *,
        step: int,
        known_ids: Mapping[str, str],
        metrics: Path,
        warn: Callable[[str], None],
    ) -> None:
        """Introduce the run, and show what trackers lack of the steps before this start.

        Args:
            run_dir: the run directory; `provenance.json` in it is shown.
            settings: dotted key -> value of the configuration.
            step: where this start goes on.
            known_ids: ids by tracker, as the checkpoint remembers them.
            metrics: lines up to `step`.
            warn: says in one line that a tracker was given up.
        """
        lines = list(read_lines(metrics)) if self._trackers else []
        for name, tracker in self._trackers.items():
            guard = GuardedTracker(name, tracker, self._timeout, warn)
            shown = _Shown(guard, run_dir, dict(settings), known_ids.get(name), step)
            self._shown.append(shown)
            for line in lines:
                shown.log(line)

    def log(self, line: Row) -> None:
        """Show one line of metrics, unless it was shown before."""
        for shown in self._shown:
            shown.log(dict(line))

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:
        """Show a table."""
        for shown in self._shown:
            shown.once(f"table {name}", step, lambda tracker: tracker.table(name, rows, step))

    def image(self, name: str, path: Path, step: int) -> None:
        """Show a PNG file."""
        for shown in self._shown:
            shown.once(f"image {name}", step, lambda tracker: tracker.image(name, path, step))

    def run_ids(self) -> dict[str, str]:
        """Return what trackers file the run under, by name; waits for those that are starting."""
        found = {shown.guard.name: shown.run_id() for shown in self._shown}
        return {name: run_id for name, run_id in found.items() if run_id is not None}

    def finish(self, *, failed: bool) -> None:
        """Let every tracker write everything out; waits for those that still answer."""
        for shown in self._shown:
            shown.guard.do(functools.partial(_finish, failed=failed))
        for shown in self._shown:
            shown.guard.close()
        self._shown.clear()

    def __enter__(self) -> Tracking:
        """Nothing is opened before `start`."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish; an error of the run is a failure."""
        self.finish(failed=kind is not None)


class _Shown:
    """What one tracker is shown; everything but the constructor's work happens in its thread."""

    def __init__(
        self,
        guard: GuardedTracker,
        run_dir: Path,
        settings: Mapping[str, Any],
        known: str | None,
        step: int,
    ) -> None:
        self.guard = guard
        self._started = threading.Event()
        self._delivery: Delivery | None = None

        def start(tracker: Tracker) -> None:
            delivery = Delivery(run_dir, guard.name, known, step)
            card = RunCard(run_dir, settings, _provenance(run_dir), delivery.run_id)
            delivery.opened(tracker.start(card))
            self._delivery = delivery
            self._started.set()

        guard.do(start)

    def run_id(self) -> str | None:
        """Return the id once the tracker has started; None when it never did."""
        self.guard.wait_for(self._started)
        return None if self._delivery is None else self._delivery.run_id

    def log(self, line: Row) -> None:
        """Show a line, unless it was shown before."""
        kind, step = place_of(line)
        self.once(kind, step, lambda tracker: tracker.log(line))

    def once(self, kind: str, step: int, action: Callable[[Tracker], None]) -> None:
        """Do `action`, unless `kind` was shown for `step` before."""

        def unless_shown(tracker: Tracker) -> None:
            delivery = self._delivery
            assert delivery is not None, "start comes first"
            if delivery.lacks(kind, step):
                action(tracker)
                delivery.shown(kind, step)

        self.guard.do(unless_shown)


def _finish(tracker: Tracker, *, failed: bool) -> None:
    tracker.finish(failed=failed)


def _provenance(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "provenance.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def open_trackers(config: TrackerConfig) -> Tracking:
    """Return the trackers of a configuration; a library is imported when its tracker starts."""
    chosen = {name: _TRACKERS[name](settings) for name, settings in config.chosen().items()}
    return Tracking(chosen, config.timeout_seconds)

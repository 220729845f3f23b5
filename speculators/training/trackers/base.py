"""The tracker protocol, the tracker that does nothing, and the shield around all others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from speculators.config.schema import TrackerConfig
from speculators.errors import ConfigError


@runtime_checkable
class Tracker(Protocol):
    """A service or program that is shown the metrics of a run."""

    def start(
        self, *, run_dir: Path, settings: Mapping[str, Any], run_id: str | None
    ) -> str | None:
        """Open the run, or go on with the one called `run_id`.

        Args:
            run_dir: where local files may go.
            settings: dotted key -> value of the configuration.
            run_id: what an earlier start returned, or None.

        Returns:
            The id a later start should be given, or None.
        """
        ...

    def log(self, values: Mapping[str, Any]) -> None:
        """Show one line of metrics; `step`, `epoch` and `kind` are among the values."""
        ...

    def finish(self, *, failed: bool) -> None:
        """Close the run; `failed` when training raised."""
        ...


class NoTracker:
    """Metrics stay in `metrics.jsonl`."""

    def start(
        self, *, run_dir: Path, settings: Mapping[str, Any], run_id: str | None
    ) -> str | None:
        """Keep the id, so that a run that was tracked before still can be later."""
        return run_id

    def log(self, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def finish(self, *, failed: bool) -> None:
        """Do nothing."""


class ShieldedTracker:
    """Passes calls on until the first failure, which it reports; training never stops for it.

    Args:
        tracker: the tracker behind.
        warn: called once with one line.
    """

    def __init__(self, tracker: Tracker, warn: Callable[[str], None]) -> None:
        self._tracker: Tracker | None = tracker
        self._warn = warn

    def start(
        self, *, run_dir: Path, settings: Mapping[str, Any], run_id: str | None
    ) -> str | None:
        """Pass on; the old id when that fails."""
        started = self._call(lambda t: t.start(run_dir=run_dir, settings=settings, run_id=run_id))
        return run_id if started is None else str(started)

    def log(self, values: Mapping[str, Any]) -> None:
        """Pass on."""
        self._call(lambda t: t.log(values))

    def finish(self, *, failed: bool) -> None:
        """Pass on."""
        self._call(lambda t: t.finish(failed=failed))

    def _call(self, action: Callable[[Tracker], Any]) -> Any:
        if self._tracker is None:
            return None
        try:
            return action(self._tracker)
        except Exception as error:  # anything a third party raises, down to its network stack
            self._tracker = None
            self._warn(
                f"tracker: {type(error).__name__}: {error}; training goes on without it, "
                "metrics.jsonl has everything"
            )
            return None


def open_tracker(config: TrackerConfig) -> Tracker:
    """Return the tracker called `config.name`; its package is imported on `start`.

    Raises:
        ConfigError: nobody knows the name.
    """
    if config.name == "none":
        return NoTracker()
    if config.name == "wandb":
        from speculators.training.trackers.wandb import WandbTracker

        return WandbTracker(project=config.project, mode=config.mode)
    raise ConfigError(f"tracker.name={config.name}: allowed: none, wandb")

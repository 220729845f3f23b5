"""Weights & Biases: offline unless asked otherwise, one run across restarts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PLACE = ("step", "epoch", "kind")


class WandbTracker:
    """Files a run with wandb under its own step axis.

    wandb's counter must never go back, which a resumed run does; so `step` is logged as a value
    and declared to be the axis of everything else.

    Args:
        project: project of the run.
        mode: offline, online or disabled.
    """

    def __init__(self, project: str, mode: str = "offline") -> None:
        self._project = project
        self._mode = mode
        self._run: Any = None

    def start(
        self, *, run_dir: Path, settings: Mapping[str, Any], run_id: str | None
    ) -> str | None:
        """Open the run in `run_dir/wandb` and return its id.

        Raises:
            ImportError: wandb is not installed.
        """
        import wandb

        self._run = wandb.init(
            project=self._project,
            name=run_dir.name,
            dir=str(run_dir),
            mode=self._mode,  # pyright: ignore[reportArgumentType]
            id=run_id,
            resume="allow",
            config=dict(settings),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return str(self._run.id)

    def log(self, values: Mapping[str, Any]) -> None:
        """Log the numbers of one line as `<kind>/<name>`."""
        kind = values.get("kind", "train")
        numbers = {
            f"{kind}/{name}": value
            for name, value in values.items()
            if name not in _PLACE and isinstance(value, int | float)
        }
        self._run.log({"step": values["step"], "epoch": values["epoch"], **numbers})

    def finish(self, *, failed: bool) -> None:
        """Write everything out and close the run."""
        if self._run is not None:
            self._run.finish(exit_code=1 if failed else 0)
            self._run = None

"""Weights & Biases: offline unless asked otherwise, one run across restarts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speculators.config.schema import WandbConfig
from speculators.training.trackers.base import Row, RunCard, numbers


class WandbTracker:
    """Files a run with wandb; its counter is the optimizer step, what one step says is one row.

    That counter must never go back. It does not: a resumed run shows no step twice, so a second
    offline folder of the same run can be synced behind the first.

    Args:
        config: project, mode and labels.
    """

    def __init__(self, config: WandbConfig) -> None:
        self._config = config
        self._run: Any = None

    def start(self, card: RunCard) -> str:
        """Open the run in `<run directory>/wandb` and return its id."""
        import wandb

        config = self._config
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=config.tags or None,
            name=card.name,
            dir=str(card.folder),
            mode=config.mode.value,
            id=card.run_id,
            resume="allow",
            config={**card.settings, "provenance": dict(card.provenance)},
            settings=wandb.Settings(console="off", silent=True),
        )
        return str(self._run.id)

    def log(self, line: Row) -> None:
        """Log the numbers of one line."""
        self._run.log({"epoch": line["epoch"], **numbers(line)}, step=line["step"])

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:
        """Log a table."""
        import wandb

        heads: list[Any] = list(rows[0]) if rows else []
        content = wandb.Table(columns=heads, data=[[row[head] for head in heads] for row in rows])
        self._run.log({name: content}, step=step)

    def image(self, name: str, path: Path, step: int) -> None:
        """Log an image."""
        import wandb

        self._run.log({name: wandb.Image(str(path))}, step=step)

    def finish(self, *, failed: bool) -> None:
        """Write everything out and close the run."""
        self._run.finish(exit_code=1 if failed else 0)

"""Trackio: files on this machine, or a space on the Hub."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speculators.config.schema import TrackioConfig
from speculators.training.trackers.base import Row, RunCard, numbers


class TrackioTracker:
    """Files a run under a name of its own: Trackio goes on with runs by their name.

    Args:
        config: project and place.
    """

    def __init__(self, config: TrackioConfig) -> None:
        self._config = config
        self._run: Any = None

    def start(self, card: RunCard) -> str:
        """Open the run and return its name."""
        import trackio

        name = card.run_id or f"{card.name}-{uuid.uuid4().hex[:6]}"
        self._run = trackio.init(
            project=self._config.project,
            name=name,
            group=self._config.group,
            space_id=self._config.space_id,
            resume="allow",
            config={**card.settings, "provenance": dict(card.provenance)},
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        return name

    def log(self, line: Row) -> None:
        """Log the numbers of one line."""
        self._run.log({"epoch": line["epoch"], **numbers(line)}, step=line["step"])

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:
        """Log a table."""
        import trackio

        heads = list(rows[0]) if rows else []
        data = [[row[head] for head in heads] for row in rows]
        self._run.log({name: trackio.Table(columns=heads, data=data)}, step=step)

    def image(self, name: str, path: Path, step: int) -> None:
        """Log an image."""
        import trackio

        self._run.log({name: trackio.Image(str(path))}, step=step)

    def finish(self, *, failed: bool) -> None:
        """Write everything out and close the run."""
        self._run.finish()

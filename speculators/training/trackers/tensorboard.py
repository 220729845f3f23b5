"""TensorBoard: event files in the run directory, flushed line by line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speculators.config.schema import TensorboardConfig
from speculators.training.trackers.base import Row, RunCard, markdown, numbers


class TensorboardTracker:
    """Writes event files; every start adds one to the same folder.

    Args:
        config: where.
    """

    def __init__(self, config: TensorboardConfig) -> None:
        self._config = config
        self._writer: Any = None

    def start(self, card: RunCard) -> str:
        """Open the folder; its path is the id."""
        from torch.utils.tensorboard import SummaryWriter

        own = str(card.folder / "tensorboard")
        folder = own if self._config.dir is None else f"{self._config.dir}/{card.name}"
        self._writer = SummaryWriter(folder)
        rows = [{"key": key, "value": value} for key, value in card.settings.items()]
        self._writer.add_text("config", markdown(rows))
        provenance = json.dumps(card.provenance, indent=4, default=str)
        self._writer.add_text("provenance", _code(provenance))
        self._writer.flush()
        return folder

    def log(self, line: Row) -> None:
        """Add the numbers of one line."""
        for name, value in numbers(line).items():
            self._writer.add_scalar(name, value, line["step"])
        self._writer.flush()

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:
        """Add a table as text."""
        self._writer.add_text(name, markdown(rows), step)

    def image(self, name: str, path: Path, step: int) -> None:
        """Add an image."""
        from matplotlib.image import imread

        self._writer.add_image(name, imread(path), step, dataformats="HWC")

    def finish(self, *, failed: bool) -> None:
        """Write everything out."""
        self._writer.close()


def _code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())

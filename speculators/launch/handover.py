"""What goes between the command and the worker processes of a run: files in one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

CONFIG_FILE = "config.yaml"
ARGV_FILE = "argv.json"


class Handover:
    """The folder `launch` of a run directory.

    Args:
        output_dir: the run directory.
    """

    def __init__(self, output_dir: Path) -> None:
        self.folder = output_dir / "launch"

    def write(self, config: str, argv: Sequence[str]) -> None:
        """Write what workers start from, and remove what earlier ones reported."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob("error-*.json"):
            old.unlink(missing_ok=True)
        (self.folder / CONFIG_FILE).write_text(config, encoding="utf-8")
        (self.folder / ARGV_FILE).write_text(json.dumps(list(argv)), encoding="utf-8")

    def report(self, rank: int, message: str, exit_code: int) -> None:
        """Leave a worker's error for the command."""
        text = json.dumps({"message": message, "exit_code": exit_code})
        (self.folder / f"error-{rank:05d}.json").write_text(text, encoding="utf-8")

    def first_error(self) -> tuple[str, int] | None:
        """Return message and exit status that the lowest rank reported, if any did."""
        for path in sorted(self.folder.glob("error-*.json")):
            error = json.loads(path.read_text(encoding="utf-8"))
            return str(error["message"]), int(error["exit_code"])
        return None

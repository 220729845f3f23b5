"""What a tracker has been shown of a run, so that nothing is shown twice and nothing left out.

A resumed run repeats the steps after its checkpoint, with the same numbers; a tracker that was
begun late, or had died, lacks lines that `metrics.jsonl` has. One number per kind of line settles
both: the last step that was shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speculators.conversion.durable import aside
from speculators.training.trackers.base import Row

FOLDER = "trackers"


class Delivery:
    """`<run directory>/trackers/<name>.json`: id of the run there, and how far it was shown.

    Args:
        run_dir: the run directory.
        name: of the tracker.
        known: id that a checkpoint remembers, for a run directory that lost this file.
        step: steps of that checkpoint, which were shown by then.
    """

    def __init__(self, run_dir: Path, name: str, known: str | None = None, step: int = 0) -> None:
        self._path = run_dir / FOLDER / f"{name}.json"
        self._shown: dict[str, int] = {}
        self._before = step if known is not None else -1
        self.run_id = known
        if self._path.exists():
            saved = json.loads(self._path.read_text(encoding="utf-8"))
            self.run_id, self._shown, self._before = saved["run_id"], saved["shown"], -1

    def lacks(self, kind: str, step: int) -> bool:
        """Whether what `kind` says of `step` was not shown yet."""
        return step > self._shown.get(kind, self._before)

    def opened(self, run_id: str) -> None:
        """Note where the run is filed."""
        self.run_id = run_id
        self._save()

    def shown(self, kind: str, step: int) -> None:
        """Note that it was shown."""
        self._shown[kind] = step
        self._save()

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        prepared = aside(self._path)
        prepared.write_text(json.dumps({"run_id": self.run_id, "shown": self._shown}) + "\n")
        prepared.replace(self._path)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of `metrics.jsonl`; none where there is no such file."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file)


def place_of(line: Row) -> tuple[str, int]:
    """Return kind and step of a line."""
    return str(line["kind"]), int(line["step"])

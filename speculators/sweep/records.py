"""`job.json`: what one run of a sweep is, and what became of it.

It lies in the run's folder, whose name comes from the run's settings: the folders are the ledger.
A run that is asked for again finds its own record, whatever its number is by then. Free of torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from speculators.conversion.durable import replace_text
from speculators.errors import DataError

RECORD_FILE = "job.json"


class Status(Enum):
    """How far a run came."""

    running = "running"
    finished = "finished"
    failed = "failed"
    stopped = "stopped"


@dataclass(frozen=True)
class Record:
    """One run of a sweep.

    Attributes:
        name: its folder.
        fingerprint: hash of `settings`.
        overrides: what it differs in: key -> value as it was written.
        settings: dotted key -> value of everything its result depends on.
        objective: name of the number it is compared by.
        status: how far it came; `running` also when its process was killed.
        start: which start of the sweep ran it last.
        values: numbers and texts of its result, by name.
        seconds: of the last attempt.
        error: why it failed, in one line.
        traceback: of an error that is a bug.
    """

    name: str
    fingerprint: str
    overrides: dict[str, str]
    settings: dict[str, Any]
    objective: str
    status: Status = Status.running
    start: str = ""
    values: dict[str, float | str | None] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    traceback: str | None = None

    @property
    def value(self) -> float | None:
        """What it is compared by; None where it has no such number."""
        value = self.values.get(self.objective)
        return None if value is None or isinstance(value, str) else float(value)

    def ended(self, status: Status, seconds: float, **more: Any) -> Record:
        """Return the record of a run that has come to its end."""
        return replace(self, status=status, seconds=round(seconds, 3), **more)


def plain_values(result: Any) -> dict[str, float | str | None]:
    """Return the numbers and texts of what a stage returned; lists and mappings are left out."""
    if not isinstance(result, Mapping):
        return {}
    kept = (int, float, str, type(None))
    return {str(key): value for key, value in result.items() if isinstance(value, kept)}


def read_record(folder: Path) -> Record | None:
    """Read the record of a run; None where there is none.

    Raises:
        DataError: it cannot be read.
    """
    path = folder / RECORD_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Record(**{**values, "status": Status(values["status"])})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}): remove it to run it again") from error


def read_records(sweep: Path) -> list[Record]:
    """Read every run of a sweep, in the order of their folders.

    Raises:
        DataError: no such folder, no run in it, or a record that cannot be read.
    """
    folders = sorted(path.parent for path in sweep.glob(f"[!.]*/{RECORD_FILE}"))
    found = [record for folder in folders if (record := read_record(folder)) is not None]
    if not found:
        raise DataError(f"sweep.dir={sweep}: holds no run of a sweep (no */{RECORD_FILE})")
    return found


def write_record(folder: Path, record: Record) -> None:
    """Write a record aside and rename it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**asdict(record), "status": record.status.value}, indent=2)
    replace_text(folder / RECORD_FILE, text + "\n")

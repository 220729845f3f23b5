"""What a tracker is: a service or program that is shown a run while it happens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Row = Mapping[str, Any]

_PLACE = ("step", "epoch", "kind")


@dataclass(frozen=True)
class RunCard:
    """A run as it introduces itself.

    Attributes:
        folder: the run directory; local files may go below it.
        settings: dotted key -> value of the configuration.
        provenance: command, code, versions and machine, as `provenance.json` has them.
        run_id: what an earlier start of the run was filed under; None at the first.
    """

    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    run_id: str | None = None

    @property
    def name(self) -> str:
        """What people call the run."""
        return self.folder.name


@runtime_checkable
class Tracker(Protocol):
    """Is shown one run. All calls come from one thread, in order; any of them may raise or hang."""

    def start(self, card: RunCard) -> str:
        """Open the run, or go on with the one called `card.run_id`; return its id.

        Raises:
            ImportError: the library is not installed.
        """
        ...

    def log(self, line: Row) -> None:
        """Show one line of metrics; `step`, `epoch` and `kind` are among its keys."""
        ...

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:
        """Show a table: rows with the same keys."""
        ...

    def image(self, name: str, path: Path, step: int) -> None:
        """Show a PNG file."""
        ...

    def finish(self, *, failed: bool) -> None:
        """Write everything out and close the run; `failed` when it was stopped by an error."""
        ...


def numbers(line: Row) -> dict[str, float]:
    """Return the finite numbers of a line as `<kind>/<name>`, those of lists by position from 1."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if name in _PLACE:
            continue
        key = f"{line['kind']}/{name}"
        named = {key: value}
        if isinstance(value, list | tuple):
            named = {f"{key}/{place}": item for place, item in enumerate(value, start=1)}
        found.update((name, float(item)) for name, item in named.items() if _is_number(item))
    return found


def _is_number(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and math.isfinite(value)


def markdown(rows: Sequence[Row]) -> str:
    """Return a table as Markdown; empty without rows."""
    if not rows:
        return ""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([_text(row[h]) for h in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)

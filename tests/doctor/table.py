"""Tables of docs/doctor.md: what the doctor printed for every planted fault and every run.

Write them anew after changing a stage or a rule:  python tests/doctor/table.py [runs]
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from doctor.runs import Run, World
    from speculators.doctor.run import RunDiagnosis

DOCUMENT = Path(__file__).parents[2] / "docs" / "doctor.md"
FAULTS = "planted faults: tests/doctor/table.py", ("planted", "named", "printed")
RUNS = (
    "planted runs: tests/doctor/table.py runs",
    ("planted", "tau: training, validation, decoding", "named first", "printed"),
)
HEALTHY = (
    "healthy runs: tests/doctor/table.py runs",
    ("run", "tau: training, validation, decoding", "named"),
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
Row = tuple[str, ...]


def rows() -> list[Row]:
    """Return fault, cause and line of every planted fault, in order."""
    import pytest

    from doctor.planted import FAULTS as PLANTED

    found: list[Row] = []
    for fault in PLANTED:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            one = fault.first_failure(Path(folder) / "checkpoint", patch)
            line = one.line.partition(f"; {one.cause}: ")[0].replace(folder, "DIR")
            found.append((fault.text, one.cause, line))
    return found


def examined(run: Run, world: World) -> RunDiagnosis:
    """Make a run, and let the doctor read it."""
    from speculators.console import open_console
    from speculators.doctor.run import diagnose_run

    asked = world.config("none", [f"run={run.make(world)}"], "doctor")
    return diagnose_run(asked, open_console(quiet=True))


def run_row(run: Run, found: RunDiagnosis) -> Row:
    """Return the line of a run in its table."""
    lengths = next((one for one in found.signatures if one.name == "tau by stage"), None)
    taus = "not trained" if lengths is None else ", ".join(_taus(lengths.numbers))
    if not found.diagnoses:
        return run.text, taus, "nothing"
    first = found.diagnoses[0]
    printed = "; ".join(text for text in (first.signature, first.test) if text)
    named = first.cause.name + ("" if first.certainty.value == "confirmed" else " (suspected)")
    return (run.text, taus, named, printed) if run.cause else (run.text, taus, named)


def _taus(numbers: str) -> list[str]:
    return [part.rpartition(" ")[2] for part in numbers.split(", ")]


def line(row: Row) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def with_table(text: str, kind: tuple[str, Row], found: Sequence[Row]) -> str:
    """Return the document with the table of `found`."""
    name, head = kind
    begin, end = f"<!-- {name} -->", "<!-- end -->"
    lines = [line(head), "|" + "---|" * len(head), *map(line, found)]
    before, _, rest = text.partition(begin)
    return "\n".join([f"{before}{begin}", *lines, end]) + rest.partition(end)[2]


def masked(text: str) -> str:
    """Return a text without its numbers, which differ between machines in their last digits."""
    return _NUMBER.sub("#", text)


def main() -> None:
    """Write the tables of faults, or of runs."""
    from doctor.runs import HEALTHY as SOUND
    from doctor.runs import PLANTED, World

    text = DOCUMENT.read_text(encoding="utf-8")
    if sys.argv[1:] != ["runs"]:
        text = with_table(text, FAULTS, rows())
    else:
        with tempfile.TemporaryDirectory() as folder:
            world = World(Path(folder))
            for kind, runs in ((HEALTHY, SOUND), (RUNS, PLANTED)):
                text = with_table(text, kind, [run_row(run, examined(run, world)) for run in runs])
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()

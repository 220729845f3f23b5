"""The table of planted faults in docs/doctor.md: what the doctor printed for each.

Write it anew after changing a stage:  python tests/doctor/table.py
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "doctor.md"
_BEGIN, _END = "<!-- planted faults: tests/doctor/table.py -->", "<!-- end -->"
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


def rows() -> list[tuple[str, str, str]]:
    """Return fault, cause and line of every planted fault, in order."""
    import pytest

    from doctor.planted import FAULTS

    found = []
    for fault in FAULTS:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            one = fault.first_failure(Path(folder) / "checkpoint", patch)
            line = one.line.partition(f"; {one.cause}: ")[0].replace(folder, "DIR")
            found.append((fault.text, one.cause, line))
    return found


def with_table(text: str, found: list[tuple[str, str, str]]) -> str:
    """Return the document with the table of `found`."""
    lines = ["| planted | named | printed |", "|---|---|---|"]
    lines += [
        f"| {text} | {cause} | {line.replace('|', chr(92) + '|')} |" for text, cause, line in found
    ]
    head, _, rest = text.partition(_BEGIN)
    return "\n".join([f"{head}{_BEGIN}", *lines, _END]) + rest.partition(_END)[2]


def masked(text: str) -> str:
    """Return a text without its numbers, which differ between machines in their last digits."""
    return _NUMBER.sub("#", text)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8"), rows()), encoding="utf-8")

"""The table of faults in docs/reliability.md, taken from the tests that prove each line.

Write it anew after changing a test:  python tests/hidden_states/online/reliability.py
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import TypeVar

DOCUMENT = Path(__file__).parents[3] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- faults: begin -->", "<!-- faults: end -->"
_MODULES = (
    "hidden_states.online.test_faults",
    "hidden_states.online.test_faults_servers",
    "hidden_states.online.test_faults_disks",
    "launch.test_online_refusals",
    "launch.test_online_training",
)
_Test = TypeVar("_Test", bound=FunctionType)


@dataclass(frozen=True)
class Fault:
    """One line of the table."""

    what: str
    result: str
    place: tuple[str, int]


FAULTS: dict[str, Fault] = {}


def proves(what: str, result: str) -> Callable[[_Test], _Test]:
    """Mark a test as the proof of a line of the table."""

    def mark(test: _Test) -> _Test:
        code = test.__code__
        place = (Path(code.co_filename).name, code.co_firstlineno)
        FAULTS[test.__name__] = Fault(what, result, place)
        return test

    return mark


def table() -> str:
    """Return the table in Markdown."""
    for module in _MODULES:
        importlib.import_module(module)
    lines = ["| what goes wrong | what happens | proof |", "|---|---|---|"]
    found = sorted(FAULTS.items(), key=lambda item: item[1].place)
    lines += [f"| {fault.what} | {fault.result} | `{test}` |" for test, fault in found]
    return "\n".join(lines)


def with_table(text: str) -> str:
    """Return the document with the current table in its place."""
    before, rest = text.split(_BEGIN)
    return f"{before}{_BEGIN}\n{table()}\n{_END}{rest.split(_END)[1]}"


if __name__ == "__main__":
    sys.path[:0] = [str(DOCUMENT.parents[1]), str(DOCUMENT.parents[1] / "tests")]
    from hidden_states.online import reliability

    DOCUMENT.write_text(reliability.with_table(DOCUMENT.read_text()))

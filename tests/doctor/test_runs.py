"""The doctor reads real training runs: planted causes come first, healthy runs are left alone."""

from __future__ import annotations

import pytest

from doctor.runs import HEALTHY, PLANTED, Run, World
from doctor.table import DOCUMENT, examined, line, masked, run_row

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def document() -> str:
    return masked(DOCUMENT.read_text(encoding="utf-8"))


@pytest.mark.parametrize("run", HEALTHY, ids=lambda run: run.name)
def test_no_cause_is_named_where_nothing_is_wrong(run: Run, world: World, document: str) -> None:
    found = examined(run, world)
    assert found.no_tests == ""
    assert [one.line for one in found.diagnoses] == []
    assert masked(line(run_row(run, found))) in document


@pytest.mark.parametrize("run", PLANTED, ids=lambda run: run.name)
def test_the_planted_cause_is_named_first(run: Run, world: World, document: str) -> None:
    found = examined(run, world)
    assert run.cause is not None
    assert found.diagnoses[0].cause.name == run.cause.name
    assert (found.folder / "resolved.yaml").is_file()
    shown = masked(line(run_row(run, found))).replace(masked(str(world.folder)), "DIR")
    assert shown in document, "run python tests/doctor/table.py runs"

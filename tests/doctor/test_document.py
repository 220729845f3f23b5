"""docs/doctor.md says what the doctor says."""

from __future__ import annotations

import pytest

from doctor.table import DOCUMENT, FAULTS, masked, rows, with_table
from speculators.doctor.causes import ALL


@pytest.mark.slow
def test_the_table_of_planted_faults_is_what_is_printed() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert masked(text) == masked(with_table(text, FAULTS, rows())), (
        "run python tests/doctor/table.py"
    )


def test_every_cause_stands_in_the_document() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [cause.name for cause in ALL if f"| {cause.name} |" not in text] == []

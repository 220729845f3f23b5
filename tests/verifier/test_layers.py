from __future__ import annotations

import subprocess
import sys

import pytest

from speculators.verifier.layers import check_layer_ids


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ((), "give at least one layer id"),
        ((-1, 2), "-1 is no layer of this verifier: ids lie between 0 and 4"),
        (
            (1, 5),
            "5 is no layer of this verifier: ids lie between 0 and 4 (5, the last state, is read "
            "for the teacher and never listed)",
        ),
        ((1, 1), "an id stands twice: ids must be distinct"),
        ((3, 1), "ids must ascend, as they are stored: [1, 3]"),
    ],
)
def test_check_says_what_is_wrong(ids: tuple[int, ...], text: str) -> None:
    assert check_layer_ids(ids, 5) == text


def test_good_ids_pass() -> None:
    assert check_layer_ids((0, 1, 4), 5) is None


def test_module_imports_no_torch() -> None:
    code = "import sys, speculators.verifier.layers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

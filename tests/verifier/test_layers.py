from __future__ import annotations

import subprocess
import sys

import pytest

from speculators.verifier.layers import check_layer_ids, dflash_layer_ids, eagle3_layer_ids


# Rows of the table in the DFlash specification, section 13.
@pytest.mark.parametrize(
    ("num_layers", "five", "three", "eagle3"),
    [
        (28, (2, 8, 14, 20, 26), (2, 14, 26), (2, 14, 25)),
        (32, (2, 9, 16, 23, 30), (2, 16, 30), (2, 16, 29)),
        (36, (2, 10, 18, 26, 34), (2, 18, 34), (2, 18, 33)),
        (64, (2, 17, 32, 47, 62), (2, 32, 62), (2, 32, 61)),
    ],
)
def test_default_rules_give_the_published_layers(
    num_layers: int, five: tuple[int, ...], three: tuple[int, ...], eagle3: tuple[int, ...]
) -> None:
    assert dflash_layer_ids(num_layers, 5) == five
    assert dflash_layer_ids(num_layers, 3) == three
    assert eagle3_layer_ids(num_layers) == eagle3


def test_one_layer_is_the_middle_one() -> None:
    assert dflash_layer_ids(36, 1) == (19,)


@pytest.mark.parametrize("num_layers", range(1, 20))
@pytest.mark.parametrize("count", range(1, 9))
def test_rules_are_usable_at_every_depth(num_layers: int, count: int) -> None:
    ids = dflash_layer_ids(num_layers, count)
    assert check_layer_ids(ids, num_layers) is None
    assert len(ids) == min(count, max(1, num_layers - 1))
    assert check_layer_ids(eagle3_layer_ids(num_layers), num_layers) is None


def test_shallow_verifiers_get_their_layers_spread() -> None:
    assert dflash_layer_ids(5, 3) == (1, 3, 4)
    assert dflash_layer_ids(5, 5) == (1, 2, 3, 4)
    assert dflash_layer_ids(1, 5) == (0,)


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

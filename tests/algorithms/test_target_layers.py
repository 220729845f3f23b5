from __future__ import annotations

import pytest

from speculators.algorithms.dflash.target_layers import dflash_layer_ids
from speculators.algorithms.eagle3.target_layers import eagle3_layer_ids
from speculators.verifier.layers import at_same_depth, check_layer_ids


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


def test_layers_of_another_verifier_lie_as_deep() -> None:
    assert at_same_depth((2, 18, 33), 36, 36) == (2, 18, 33)
    assert at_same_depth((2, 18, 33), 36, 32) == (2, 16, 29)
    assert at_same_depth((1, 3, 5), 7, 14) == (2, 6, 10)
    assert at_same_depth((2, 18, 35), 36, 4) == (1, 2, 3)
    assert at_same_depth((0, 18), 36, 4) == (0, 2)
    assert at_same_depth((10, 11, 12), 36, 8) == (1, 4, 7)  # nearest ones coincide: spread
    assert at_same_depth((1, 2, 3), 8, 3) == (1, 2)

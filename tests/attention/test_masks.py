from __future__ import annotations

import pytest
import torch

from attention.packings import RULES, oracle_mask, random_layout
from speculators.attention.layout import BlockLayout, MaskRule
from speculators.attention.masks import anchored_block_mask, dense_mask


def worked_example() -> BlockLayout:
    return BlockLayout(
        torch.tensor([2, 6]),
        2,
        torch.tensor([0, 0, 0, 0, 0, 1, 1, 1]),
        torch.tensor([0, 1, 2, 3, 4, 0, 1, 2]),
        3,
    )


def visible(mask: torch.Tensor) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in mask]


def test_worked_example_full() -> None:
    block0, block1 = [0, 1, 8, 9, 10], [5, 11, 12, 13]
    assert visible(dense_mask(worked_example(), MaskRule())) == [block0] * 3 + [block1] * 3


def test_worked_example_window_of_two() -> None:
    seen = visible(dense_mask(worked_example(), MaskRule(window=2)))
    assert seen[:3] == [[1, 8, 9], [8, 9, 10], [9, 10]]


def test_worked_example_causal() -> None:
    seen = visible(dense_mask(worked_example(), MaskRule(causal=True)))
    assert seen[:3] == [[0, 1, 8], [0, 1, 8, 9], [0, 1, 8, 9, 10]]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_equals_the_definition(seed: int, rule: MaskRule) -> None:
    layout = random_layout(seed, max_tokens=60)
    assert torch.equal(dense_mask(layout, rule), oracle_mask(layout, rule))


def test_name_carries_the_parameters() -> None:
    mask_mod = anchored_block_mask(worked_example(), MaskRule(window=2, causal=True))
    assert mask_mod.__name__ == "anchored_blocks_of_3_window_2_causal_True"


def test_filling_sees_itself_and_nobody_sees_filling() -> None:
    example = worked_example()
    layout = BlockLayout(torch.tensor([2, 6, 0]), 2, example.document_ids, example.position_ids, 3)
    seen = visible(dense_mask(layout, MaskRule()))
    assert seen[6:] == [[14, 15, 16]] * 3
    assert all(key < 14 for row in seen[:6] for key in row)

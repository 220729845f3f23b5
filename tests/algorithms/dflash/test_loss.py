from __future__ import annotations

import pytest
import torch

from speculators.algorithms.dflash.config import Normalization, PositionWeights
from speculators.algorithms.dflash.loss import (
    default_gamma,
    divisor,
    dpace_weights,
    slot_weights,
)


@pytest.mark.parametrize(
    ("block_size", "gamma"),
    [(8, 4), (9, 4.5), (10, 5), (13, 6), (16, 7), (4, 2), (2, 1), (3, 1.5), (22, 9)],
)
def test_gamma_by_block_size(block_size: int, gamma: float) -> None:
    assert default_gamma(block_size) == pytest.approx(gamma)


# DFlash specification, section 9
@pytest.mark.parametrize(
    ("block_size", "total", "shrink"),
    [(16, 6.6306, 0.442), (10, 4.6048, 0.512), (8, 3.7352, 0.534)],
)
def test_exponential_weights(block_size: int, total: float, shrink: float) -> None:
    weights = slot_weights(PositionWeights.exp, block_size, default_gamma(block_size))
    assert weights[0] == 0
    assert weights[1] == 1
    assert weights.sum().item() == pytest.approx(total, abs=1e-4)
    by_slots = weights[1:].sum() / divisor(weights[1:], Normalization.slots)
    assert by_slots.item() == pytest.approx(shrink, abs=5e-4)
    assert divisor(weights[1:], Normalization.weights).item() == pytest.approx(total, abs=1e-4)


def test_uniform_weights() -> None:
    assert slot_weights(PositionWeights.uniform, 4, 1.0).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("ce", "trained", "weights"),
    [
        ((0.5, 0.5, 0.5), (1, 1, 1), (0, 1.96680, 1.16353, 0.51830)),
        ((0.1, 0.7, 2.3), (1, 1, 1), (0, 2.05718, 1.10476, 0.39207)),
        ((0.1, 0.7, 2.3), (1, 0, 1), (0, 1.47637, 0, 0.52395)),
    ],
)
def test_dpace_weights(
    ce: tuple[float, ...], trained: tuple[int, ...], weights: tuple[float, ...]
) -> None:
    found = dpace_weights(
        torch.tensor([[9.9, *ce]]), torch.tensor([[0, *trained]]).bool(), alpha=0.5
    )
    assert found[0].tolist() == pytest.approx(weights, abs=2e-5)

from __future__ import annotations

import contextlib
import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from speculators.config.schema import BestMetric
from speculators.errors import CheckpointError
from speculators.training.ema import WeightAverage
from speculators.training.ranks import Ranks
from speculators.training.rng import capture_rng, restore_rng, untouched_rng
from speculators.training.spread import Replicated
from speculators.training.validation import is_better, validate_undisturbed
from speculators.training.weights import TrainedWeights
from training.toy import seed_everything, toy_drafter


def draw() -> tuple[float, float, float, float]:
    return random.random(), random.gauss(0, 1), float(np.random.randn()), float(torch.rand(1))


def test_every_global_random_state_comes_back() -> None:
    seed_everything(1)
    draw()
    state = capture_rng()
    expected = draw(), draw()
    restore_rng(state)
    assert (draw(), draw()) == expected


def test_random_states_come_back_when_the_block_fails() -> None:
    seed_everything(1)
    expected = draw()
    seed_everything(1)
    with contextlib.suppress(KeyError), untouched_rng():
        draw()
        raise KeyError
    assert draw() == expected


def test_a_damaged_random_state_is_one_clear_line() -> None:
    with pytest.raises(CheckpointError, match=r"^rng_state_rank0.pt: is damaged \('python'\)$"):
        restore_rng({})


def test_validation_sees_the_average_and_leaves_no_trace() -> None:
    drafter = toy_drafter().train()
    average = WeightAverage(drafter.trainable_parameters(), 0.9)
    weights = TrainedWeights(drafter, [], average, Replicated(drafter, Ranks()), Ranks())
    with torch.no_grad():
        drafter.fc.weight.zero_()
    drafter.fc.weight.grad = torch.ones_like(drafter.fc.weight)
    seen: dict[str, Any] = {}

    def validate(given: Any) -> dict[str, float]:
        seen.update(
            training=given.training,
            gradients=torch.is_grad_enabled(),
            zero=bool((given.fc.weight == 0).all()),
        )
        torch.rand(1)
        return {"loss": 1.0}

    seed_everything()
    expected = torch.rand(1)
    seed_everything()
    assert validate_undisturbed(validate, weights, contextlib.nullcontext()) == {"loss": 1.0}
    assert seen == {"training": False, "gradients": False, "zero": False}
    assert drafter.training
    assert bool((drafter.fc.weight == 0).all())
    assert drafter.fc.weight.grad is not None
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("value", "best", "metric", "better"),
    [
        (2.0, None, BestMetric.acceptance_length, True),
        (2.0, 1.9, BestMetric.acceptance_length, True),
        (2.0, 2.0, BestMetric.acceptance_length, False),
        (1.0, 2.0, BestMetric.loss, True),
        (2.0, 2.0, BestMetric.loss, False),
        (math.nan, None, BestMetric.loss, False),
        (math.nan, 1.0, BestMetric.acceptance_length, False),
    ],
)
def test_what_is_better(value: float, best: float | None, metric: BestMetric, better: bool) -> None:
    assert is_better(value, best, metric) is better

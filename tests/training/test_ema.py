from __future__ import annotations

import pytest
import torch
from torch import nn

from speculators.errors import CheckpointError
from speculators.training.ema import WeightAverage
from speculators.training.ranks import Ranks
from speculators.training.spread import Replicated
from training.toy import toy_drafter

ALONE = Replicated(toy_drafter(), Ranks())


def test_the_average_follows_and_starts_quickly() -> None:
    weight = nn.Parameter(torch.tensor([4.0]))
    average = WeightAverage({"w": weight}, decay=0.5)
    expected = 4.0
    for n, value in enumerate((1.0, 2.0, 3.0, 0.0, 7.0, 1.0, 2.0, 9.0, 9.0, 9.0)):
        with torch.no_grad():
            weight.fill_(value)
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
        with average.applied():
            assert weight.item() == pytest.approx(expected, rel=1e-5)
        assert weight.item() == value


def test_the_weights_come_back_when_the_block_fails() -> None:
    weight = nn.Parameter(torch.tensor([4.0]))
    average = WeightAverage({"w": weight}, decay=0.5)
    with torch.no_grad():
        weight.fill_(1.0)
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    assert weight.item() == 1.0


def test_a_checkpoint_without_the_average_is_refused() -> None:
    average = WeightAverage({"w": nn.Parameter(torch.zeros(1))}, decay=0.5)
    other = WeightAverage({"v": nn.Parameter(torch.zeros(1))}, decay=0.5)
    for state in (None, other.state()):
        with pytest.raises(CheckpointError) as error:
            average.load(state, ALONE)
        assert str(error.value) == (
            "optimizer_state_dict.pt: has no average of these weights (training.ema_decay)"
        )

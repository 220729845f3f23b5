from __future__ import annotations

import math

import pytest

from speculators.config.schema import ScheduleConfig, ScheduleName, TrainingConfig
from speculators.errors import DataError
from speculators.training.schedule import Schedule, count_steps, steps_in_epoch


def factors(name: str, total: int, warmup: float = 0.0, final: float = 0.0) -> list[float]:
    schedule = Schedule(ScheduleConfig(ScheduleName(name), warmup, final), total)
    return [schedule.factor(step) for step in range(total)]


def test_constant_stays_at_the_peak() -> None:
    assert factors("constant", 4, final=0.5) == [1.0] * 4


def test_linear_falls_evenly_and_would_reach_the_end_after_the_last_step() -> None:
    assert factors("linear", 4) == [1.0, 0.75, 0.5, 0.25]
    assert factors("linear", 4, final=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert factors("cosine", 4, final=0.1) == pytest.approx(
        [0.1 + 0.9 * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)]
    )


def test_warmup_rises_from_above_zero_to_the_peak() -> None:
    assert factors("linear", 10, warmup=0.3) == pytest.approx(
        [1 / 4, 2 / 4, 3 / 4, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]
    )
    assert factors("constant", 4, warmup=0.25) == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.04, 1.0])
def test_no_step_is_wasted_even_in_the_shortest_runs(name: str, warmup: float) -> None:
    for total in (1, 2, 3, 17):
        assert all(0 < factor <= 1 for factor in factors(name, total, warmup))


def test_the_description_holds_what_decides_the_rate() -> None:
    schedule = Schedule(ScheduleConfig(ScheduleName.linear, 0.1, 0.05), 100)
    assert schedule.describe(7) == {
        "name": "linear",
        "step": 7,
        "total_steps": 100,
        "warmup_steps": 10,
        "final_fraction": 0.05,
    }


def training(**values: int | None) -> TrainingConfig:
    return TrainingConfig(sequence_length=8, **values)  # pyright: ignore[reportArgumentType]


def test_steps_round_up_and_epochs_may_differ_in_length() -> None:
    assert steps_in_epoch(5, 2) == 3
    settings = training(epochs=3, accumulation_steps=2)
    assert count_steps(lambda epoch: 5 + epoch, settings) == 3 + 3 + 4


def test_max_steps_decides_where_it_is_given() -> None:
    assert count_steps(lambda epoch: 5, training(epochs=1, max_steps=800)) == 800
    assert count_steps(lambda epoch: 5, training(epochs=9, max_steps=2)) == 2


def test_without_rows_there_is_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match=r"^no packed row to train on: the data left no supervised"):
        count_steps(lambda epoch: 0, training())

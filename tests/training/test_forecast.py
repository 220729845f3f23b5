"""Forecasts of curves whose end is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculators.training.forecast import Forecast, forecast

LAST, LONGEST = 600, 8.0
CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fast": lambda t: 2.5 - 1.2 * (t / 40) ** -1.0,
    "square root": lambda t: 2.6 - 1.1 * (t / 30) ** -0.5,
    "slow": lambda t: 4.0 - 2.6 * (t / 20) ** -0.15,
}


def made(curve: str, num_validations: int, noise: float, seed: int) -> tuple[np.ndarray, ...]:
    steps = np.linspace(LAST / num_validations, LAST, num_validations)
    drawn = np.random.default_rng(seed).normal(0, noise, num_validations)
    return steps.astype(int), CURVES[curve](steps) + drawn


def of(steps: np.ndarray, values: np.ndarray, seen: int) -> Forecast:
    found = forecast(list(zip(steps[:seen].tolist(), values[:seen].tolist(), strict=True)), LAST, 8)
    assert found is not None
    return found


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize(("num_validations", "seen"), [(20, 5), (20, 10), (5, 4)])
@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_the_interval_holds_the_value_measured_at_the_end(
    curve: str, num_validations: int, seen: int, noise: float
) -> None:
    """95 % are promised; chance leaves 87 % of 80 runs (three standard deviations)."""
    inside, errors = 0, []
    for seed in range(80):
        steps, values = made(curve, num_validations, noise, seed)
        found = of(steps, values, seen)
        inside += found.low <= values[-1] <= found.high
        errors.append(found.value - values[-1])
    assert inside / 80 >= 0.87
    early = seen < num_validations / 2  # half of a forecast takes another scale, which counts then
    assert abs(float(np.median(errors))) < (0.05 + noise if early else 0.02 + 0.6 * noise)


def test_later_forecasts_are_sharper() -> None:
    steps, values = made("square root", 20, 0.01, 0)
    widths = [(f := of(steps, values, seen)).high - f.low for seen in (5, 10, 19)]
    assert widths[0] > 2 * widths[1] > 2 * widths[2]
    assert widths[2] < 0.1


def test_a_curve_without_noise_is_continued() -> None:
    steps, values = made("square root", 20, 0.0, 0)
    assert of(steps, values, 10).value == pytest.approx(values[-1], abs=0.02)


def test_a_falling_curve_is_forecast_to_fall() -> None:
    steps = np.arange(60, 600, 60)
    values = 3.0 - steps / 600
    assert of(steps, values, 9).high < values[4]


def test_the_start_does_not_count() -> None:
    """The first steps of a run follow no power law."""
    steps, values = made("square root", 20, 0.01, 1)
    early = [(1, 1.0), (5, 1.0), (10, 1.01)]
    points = list(zip(steps[:10].tolist(), values[:10].tolist(), strict=True))
    assert forecast(early + points, LAST, LONGEST) == forecast(points, LAST, LONGEST)


def test_nothing_to_say() -> None:
    points = [(60, 1.5), (120, 1.7), (180, 1.8), (600, 2.0)]
    assert forecast([], LAST, LONGEST) is None
    assert forecast(points[:3], LAST, LONGEST) is None  # too few
    assert forecast(points, LAST, LONGEST) is None  # it is over
    assert forecast([*points[:3], (240, float("nan"))], LAST, LONGEST) is None


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(1.0, 8.0), min_size=4, max_size=12),
    st.integers(1, 50),
)
def test_any_points_give_an_ordered_forecast_inside_what_is_possible(
    values: list[float], every: int
) -> None:
    points = [(every * (i + 1), value) for i, value in enumerate(values)]
    found = forecast(points, LAST + every, LONGEST)
    if found is not None:
        assert 1.0 <= found.low <= found.value <= found.high <= LONGEST
        assert found == forecast(points, LAST + every, LONGEST)

"""`training.stop_when`: each rule, and runs that end early and go on as if they had not."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from speculators.config.schema import StopWhenConfig
from speculators.console import open_console
from speculators.training.forecast import Forecast
from speculators.training.outlook import stop_reason
from training.toy import seed_everything, toy_config, toy_trainer

CURVE = [(100, 1.2), (200, 1.5), (300, 1.6), (400, 1.55), (500, 1.58)]
EXPECTED = Forecast(1.7, 1.6, 1.8)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"reached": 1.58}, "acceptance length 1.580 has reached 1.58 (reached)"),
        ({"reached": 1.6}, None),
        ({"patience": 2}, "2 validations brought no better one than 1.600 (patience)"),
        ({"patience": 3}, None),
        (
            {"forecast_below": 1.85},
            "at best 1.800 can be expected, less than 1.85 (forecast_below)",
        ),
        ({"forecast_below": 1.75}, None),
        (
            {"plateau": 0.25},
            "at best 0.200 more than 1.600 can be expected, less than 0.25 (plateau)",
        ),
        ({"plateau": 0.15}, None),
        ({"patience": 2, "after_fraction": 0.6}, None),
        ({}, None),
    ],
)
def test_each_rule(rules: dict[str, Any], reason: str | None) -> None:
    assert stop_reason(StopWhenConfig(**rules), CURVE, 1000, EXPECTED) == reason
    assert stop_reason(StopWhenConfig(**rules), [], 1000, None) is None


def test_without_a_forecast_the_rules_about_it_are_silent() -> None:
    rules = StopWhenConfig(forecast_below=9.0, plateau=9.0)
    assert stop_reason(rules, CURVE, 1000, None) is None


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def fit(run_dir: Path, **training: Any) -> tuple[Any, str]:
    seed_everything()
    screen = io.StringIO()
    console = open_console(file=screen, width=200)
    settings = {"epochs": 6, "validate_every_steps": 2, **training}
    config = toy_config(run_dir, **settings)
    return toy_trainer(run_dir, config, console=console).fit(), screen.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps that nothing ends."""
    run_dir = tmp_path_factory.mktemp("whole")
    result, _ = fit(run_dir)
    assert (result.steps, result.stopped, result.forecast) == (30, None, None)
    return run_dir


def test_forecasts_stand_beside_validations(whole: Path) -> None:
    found = [line for line in lines(whole) if line["kind"] == "validation"]
    made = ["forecast_acceptance_length" in line for line in found]
    assert made == [False] * 3 + [True] * 11 + [False]  # too few points; nothing left
    for line in found[3:-1]:
        low, high = line["forecast_acceptance_length_ci95"]
        assert 1 <= low <= line["forecast_acceptance_length"] <= high <= 3


def test_a_run_ends_early_is_complete_and_goes_on_unchanged(whole: Path, tmp_path: Path) -> None:
    lengths = [x["acceptance_length"] for x in lines(whole) if x["kind"] == "validation"]
    goal = max(lengths[5:9])
    step = 2 * (next(i for i, x in enumerate(lengths) if i >= 3 and x >= goal) + 1)
    rule = StopWhenConfig(reached=goal)
    result, screen = fit(tmp_path, stop_when=rule)
    assert (result.steps, result.stopped) == (step, f"acceptance length {goal:.3f} has reached "
                                              f"{goal:g} (reached)")  # fmt: skip
    assert f"training ends here: {result.stopped}" in screen
    assert result.forecast is not None
    assert (result.last_checkpoint or Path()).is_dir()

    again, screen = fit(tmp_path, stop_when=rule)
    assert again.steps == step
    assert f"training ended at step {step} of 30: {result.stopped}; nothing to do" in screen

    # Without the rule it is the run that was never stopped, to the last bit.
    result, _ = fit(tmp_path)
    assert result.steps == 30
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_validation_that_walks_nothing_forecasts_nothing(tmp_path: Path) -> None:
    config = toy_config(tmp_path, validate_every_steps=2, epochs=3)
    config.training.best_metric = type(config.training.best_metric).loss
    result = toy_trainer(tmp_path, config, validate=lambda drafter: {"loss": 1.0}).fit()
    assert (result.forecast, result.stopped) == (None, None)

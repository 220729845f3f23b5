"""What a start is worth, from a short run: the configured one and a random one, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from speculators.algorithms.base import Drafter
from speculators.config.schema import Config, ScheduleName, StopWhenConfig
from speculators.evaluation.inference import inference
from speculators.training.forecast import Forecast, forecast
from speculators.training.step import autocast
from speculators.training.trainer import Trainer
from speculators.training.validation import Validate

_POINTS = 5

MakeTrainer = Callable[[Config, Drafter[Any], Path], Trainer]


@dataclass(frozen=True)
class StartForecast:
    """Acceptance lengths of the walk on validation rows, by steps trained.

    Attributes:
        steps: where they were measured; 0 is before the first step.
        started: from the configured start.
        random: from random weights.
        last_step: steps of the whole run.
        longest: acceptance length that cannot be exceeded.
    """

    steps: list[int]
    started: list[float]
    random: list[float]
    last_step: int
    longest: float

    def expected(self, values: Sequence[float]) -> Forecast | None:
        """Return what a start is heading for at the end of the whole run, where that can be told.

        Args:
            values: `started` or `random`.
        """
        curve = list(zip(self.steps, values, strict=True))[1:]
        return forecast(curve, self.last_step, self.longest)

    @property
    def gain(self) -> float:
        """How far ahead the configured start is at the end of the short run."""
        return self.started[-1] - self.random[-1]

    @property
    def steps_saved(self) -> int | None:
        """Steps after which the random start is where the other began; None: not within the run."""
        reached = zip(self.steps, self.random, strict=True)
        return next((step for step, value in reached if value >= self.started[0]), None)

    def lines(self) -> Iterator[str]:
        """Say it to people."""
        last = self.steps[-1]
        yield f"forecast from a short run of {last} steps (acceptance length, walk on validation):"
        for name, values in (("as configured", self.started), ("random", self.random)):
            path = ", ".join(f"{v:.2f}" for v in values)
            yield f"  {name:<13} {path} after {', '.join(map(str, self.steps))} steps"
        saved = self.steps_saved
        head = (
            f"a random start has not come to {self.started[0]:.2f} in {last} steps"
            if saved is None
            else f"a random start comes to {self.started[0]:.2f} in {saved} steps"
        )
        ends = [self.expected(values) for values in (self.started, self.random)]
        if None not in ends:
            told = [f"{end.value:.2f} ({end.low:.2f} to {end.high:.2f})" for end in ends if end]
            yield (
                f"  expected after {self.last_step} steps: {told[0]} as configured, {told[1]} at "
                "random"
            )
        verdict = f"this start is ahead by {self.gain:.2f}"
        if self.gain <= 0:
            verdict = f"this start is behind by {-self.gain:.2f}: start at random instead"
        yield f"  {head}; {verdict}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        ends = {"started": self.expected(self.started), "random": self.expected(self.random)}
        return {
            **asdict(self),
            "gain": self.gain,
            "steps_saved": self.steps_saved,
            "expected": {name: end and end.to_dict() for name, end in ends.items()},
        }


def forecast_start(
    config: Config,
    drafter: Drafter[Any],
    fresh: Callable[[], Drafter[Any]],
    measure: Validate,
    trainer: MakeTrainer,
    last_step: int,
) -> StartForecast:
    """Train both starts for `speculator.forecast_steps` steps; the drafter is as before afterwards.

    Args:
        config: of the run; a short run has its learning rate, at full height throughout.
        drafter: as configured.
        fresh: builds the same drafter with random weights.
        measure: validation of a drafter.
        trainer: makes the trainer of a configuration, a drafter and a run directory.
        last_step: steps of the whole run.
    """
    short = _short(config)
    kept = {name: p.detach().clone() for name, p in drafter.trainable_parameters().items()}
    curves = [_curve(short, one, measure, trainer) for one in (drafter, fresh())]
    with torch.no_grad():
        for name, parameter in drafter.trainable_parameters().items():
            parameter.copy_(kept[name])
            parameter.grad = None
    started, random = (list(curve.values()) for curve in curves)
    longest = drafter.num_draft_tokens + 1.0
    return StartForecast(list(curves[0]), started, random, last_step, longest)


def _short(config: Config) -> Config:
    steps = config.speculator.forecast_steps
    schedule = replace(config.schedule, name=ScheduleName.constant)
    training = replace(
        config.training,
        max_steps=steps,
        validate_every_steps=max(1, steps // _POINTS),
        checkpoint_every_steps=None,
        profile_steps=None,
        stop_when=StopWhenConfig(),
    )
    return replace(config, training=training, schedule=schedule)


def _curve(
    config: Config,
    drafter: Drafter[Any],
    measure: Validate,
    trainer: MakeTrainer,
) -> dict[int, float]:
    """Return the acceptance length by step."""
    device = next(drafter.parameters()).device
    with inference(drafter), autocast(config.training.precision, device):
        found = {0: float(measure(drafter)["acceptance_length"])}
    with TemporaryDirectory(prefix="forecast-") as name:
        trainer(config, drafter, Path(name)).fit()
        lines = (Path(name) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines):
        if line["kind"] == "validation":
            found[line["step"]] = float(line["acceptance_length"])
    return found

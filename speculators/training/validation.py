"""Validation that leaves training as it was, and what "best" means."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from speculators.algorithms.base import Drafter
from speculators.config.schema import BestMetric
from speculators.errors import ConfigError, HiddenStateError
from speculators.evaluation.inference import inference
from speculators.training.rng import untouched_rng
from speculators.training.state import TrainerState
from speculators.training.weights import TrainedWeights

Validate = Callable[[Drafter[Any]], Mapping[str, Any]]
"""Measures a drafter on held-out rows. Same drafter, same answer: no times or dates in it."""


def validate_undisturbed(
    validate: Validate,
    weights: TrainedWeights,
    arithmetic: contextlib.AbstractContextManager[Any],
) -> dict[str, Any]:
    """Validate the weights that would be saved: the average where there is one.

    Training goes on as if this had not happened: weights, gradients, module modes and every
    global random state are put back, also when validation fails. The main process measures, all
    ranks return what it found.

    Args:
        validate: what to measure.
        weights: of the drafter in training.
        arithmetic: autocast of the run.
    """
    found: dict[str, Any] = {}
    problem: HiddenStateError | None = None
    with untouched_rng(), weights.servable() as drafter:
        if drafter is not None:
            with inference(drafter), arithmetic:
                try:
                    found = dict(validate(drafter))
                except HiddenStateError as error:  # all ranks save and stop together
                    problem = error
    found, problem = weights.ranks.share((found, problem))
    if problem is not None:
        raise problem
    return found


def note_validation(state: TrainerState, values: Mapping[str, Any], metric: BestMetric) -> bool:
    """Record in `state` what validation found at its step; return whether it is the best so far.

    Raises:
        ConfigError: validation did not measure `metric`.
    """
    value = best_value_of(values, metric)
    if state.best_metric != metric.value:
        state.best_value, state.best_metric = None, metric.value
    if not is_better(value, state.best_value, metric):
        return False
    state.best_value, state.best_step = value, state.position.step
    return True


def best_value_of(values: Mapping[str, Any], metric: BestMetric) -> float:
    """Return the value that decides which checkpoint is best.

    Raises:
        ConfigError: validation did not measure it.
    """
    if metric.value not in values:
        raise ConfigError(
            f"training.best_metric={metric.value}: validation measures only "
            f"{', '.join(sorted(values)) or 'nothing'}; choose one of those"
        )
    value = values[metric.value]
    return math.nan if value is None else float(value)


def is_better(value: float, best: float | None, metric: BestMetric) -> bool:
    """Whether `value` beats `best`; equal values and NaN do not, so that ties keep the older."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value < best if metric is BestMetric.loss else value > best

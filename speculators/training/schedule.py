"""Learning rate and length of a run, as pure functions: nothing to restore on resume."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from speculators.config.schema import ScheduleConfig, ScheduleName, TrainingConfig
from speculators.errors import DataError


@dataclass(frozen=True)
class Schedule:
    """Factor of the peak learning rate at every step.

    Warm-up rises linearly from 0, without spending a step at 0: step s of w uses (s+1) / (w+1).
    The rate then falls towards `final_fraction`, which it would reach one step after the last.

    Attributes:
        config: shape, share of warm-up and final factor.
        total_steps: optimizer steps of the whole run.
    """

    config: ScheduleConfig
    total_steps: int

    @property
    def warmup_steps(self) -> int:
        """Steps of the rise: the configured share of all steps, rounded."""
        return round(self.config.warmup_fraction * self.total_steps)

    def factor(self, step: int) -> float:
        """Return the factor of the step with 0-based index `step`."""
        warmup = self.warmup_steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        final = self.config.final_fraction
        match self.config.name:
            case ScheduleName.constant:
                return 1.0
            case ScheduleName.linear:
                return 1 - (1 - final) * progress
            case ScheduleName.cosine:
                return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    def describe(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint records of the schedule after `step` steps."""
        return {
            "name": self.config.name.value,
            "step": step,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "final_fraction": self.config.final_fraction,
        }


def steps_in_epoch(rows: int, rows_per_step: int) -> int:
    """Return the optimizer steps of an epoch; the last one takes the rows that are left."""
    return math.ceil(rows / rows_per_step)


def count_steps(
    rows_in_epoch: Callable[[int], int], training: TrainingConfig, world_size: int = 1
) -> int:
    """Return the optimizer steps of the whole run.

    `training.max_steps` decides where it is given, over as many epochs as that takes; otherwise
    `training.epochs` do.

    Args:
        rows_in_epoch: packed rows of an epoch, by its 0-based number.
        training: the run's lengths.
        world_size: processes that each take `training.accumulation_steps` rows per step.

    Raises:
        DataError: an epoch has no rows.
    """
    if rows_in_epoch(0) < 1:
        raise DataError(
            "no packed row to train on: the data left no supervised tokens; "
            "`speculators prepare` shows how many rows were dropped and why"
        )
    if training.max_steps is not None:
        return training.max_steps
    return sum(
        steps_in_epoch(rows_in_epoch(epoch), training.accumulation_steps * world_size)
        for epoch in range(training.epochs)
    )

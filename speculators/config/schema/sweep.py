"""`sweep`: several runs that answer one question."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Objective(Enum):
    """The number of `result.json` that runs are compared by."""

    acceptance_length = "acceptance_length"
    verifier_calls_saved = "verifier_calls_saved"
    speedup = "speedup"
    forecast_speedup = "forecast_speedup"
    best_value = "best_value"

    def maximised(self, best_metric: str) -> bool:
        """Whether more is better; `best_metric` is `training.best_metric`."""
        return self is not Objective.best_value or best_metric != "loss"

    @property
    def decoded(self) -> bool:
        """Whether it comes from decoding after training; `best_value` comes from validation."""
        return self is not Objective.best_value


@dataclass
class SweepConfig:
    """What the runs of a multirun are compared by."""

    objective: Objective | None = None
    """What each run returns to the sweeper, and the leaderboard's order. speedup: measured here;
    forecast_speedup: acceptance against the weights that drafting reads; best_value: of validation,
    by training.best_metric. null: acceptance_length; leaderboard: what the runs were made for."""
    dir: str | None = None
    """leaderboard: folder of the sweep."""

    @property
    def compared_by(self) -> Objective:
        """The objective of runs that are made now."""
        return self.objective or Objective.acceptance_length

"""Everything of a checkpoint that is tensors: weights, moments, averages, random states."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from speculators.algorithms.base import Drafter
from speculators.config.schema import FloatType
from speculators.conversion.layout import write_model
from speculators.training.checkpoint import (
    OPTIMIZER_FILE,
    RNG_FILE,
    SCHEDULER_FILE,
    CheckpointFolder,
    load_master,
)
from speculators.training.ema import WeightAverage
from speculators.training.optimizers import load_optimizer_states, optimizer_states
from speculators.training.rng import capture_rng, restore_rng
from speculators.training.schedule import Schedule


@dataclass(frozen=True)
class TrainedWeights:
    """A drafter's fp32 weights with all that moves along with them.

    Attributes:
        drafter: what is trained.
        optimizers: their moments belong to the weights.
        average: moving average of the weights, or None.
    """

    drafter: Drafter[Any]
    optimizers: Sequence[Optimizer]
    average: WeightAverage | None

    def tensors(self, schedule: Schedule, step: int) -> dict[str, Any]:
        """Return the tensor files of a checkpoint after `step` steps, by file name."""
        weights = self.drafter.trainable_parameters()
        return {
            OPTIMIZER_FILE: {
                "optimizers": optimizer_states(self.optimizers),
                "master": {name: p.detach() for name, p in weights.items()},
                "average": None if self.average is None else self.average.state(),
            },
            SCHEDULER_FILE: [schedule.describe(step) for _ in self.optimizers],
            RNG_FILE: capture_rng(),
        }

    def write_model(self, folder: Path, dtype: FloatType) -> None:
        """Write the servable files: the averaged weights where there is an average.

        Raises:
            CheckpointError: the weights are not fit to be served.
        """
        averaged: AbstractContextManager[None] = nullcontext()
        if self.average is not None:
            averaged = self.average.applied()
        with averaged:
            write_model(folder, self.drafter, dtype)

    def load(self, checkpoints: CheckpointFolder, name: str) -> None:
        """Restore weights, moments, average and random states, bit for bit.

        Raises:
            CheckpointError: a file is missing or damaged, or does not fit the drafter.
        """
        saved = checkpoints.load(name, OPTIMIZER_FILE)
        random = checkpoints.load(name, RNG_FILE)
        checkpoints.load(name, SCHEDULER_FILE)
        load_master(self.drafter.trainable_parameters(), saved["master"])
        load_optimizer_states(self.optimizers, saved["optimizers"])
        if self.average is not None:
            self.average.load(saved["average"])
        restore_rng(random)

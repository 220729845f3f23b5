"""Everything of a checkpoint that is tensors: weights, moments, averages, random states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from speculators.algorithms.base import Drafter
from speculators.training.checkpoint import (
    OPTIMIZER_FILE,
    SCHEDULER_FILE,
    CheckpointFolder,
    load_master,
    rng_file,
)
from speculators.training.ema import WeightAverage
from speculators.training.optimizers import load_optimizer_states, optimizer_states
from speculators.training.ranks import Ranks
from speculators.training.rng import capture_rng, restore_rng
from speculators.training.schedule import Schedule
from speculators.training.spread import Spread


@dataclass(frozen=True)
class TrainedWeights:
    """A drafter's fp32 weights with all that moves along with them.

    Attributes:
        drafter: what is trained.
        optimizers: their moments belong to the weights.
        average: moving average of the weights, or None.
        spread: how all of them are spread over the ranks.
        ranks: every one of them must call every method.
    """

    drafter: Drafter[Any]
    optimizers: Sequence[Optimizer]
    average: WeightAverage | None
    spread: Spread
    ranks: Ranks

    def stage(
        self, schedule: Schedule, step: int, aside: Path
    ) -> Callable[[], dict[str, Any] | None]:
        """Copy what the tensor files of a checkpoint after `step` steps hold.

        They are the same for any number of ranks; only random states belong to one of them.

        Args:
            schedule: of the run.
            step: steps done.
            aside: a folder for what ranks hand over, as in `Spread.stage`.

        Returns:
            To be called by every rank, in any thread: gives the main one the content by file name.
        """
        weights = self.drafter.trainable_parameters()
        random = self.ranks.gather(capture_rng())
        small = {
            SCHEDULER_FILE: [schedule.describe(step) for _ in self.optimizers],
            **{rng_file(rank): state for rank, state in enumerate(random)},
        }
        whole = self.spread.stage(
            {
                "optimizers": optimizer_states(self.optimizers),
                "master": {name: p.detach() for name, p in weights.items()},
                "average": None if self.average is None else self.average.state(),
            },
            aside,
        )

        def files() -> dict[str, Any] | None:
            state = whole()
            return None if state is None else {OPTIMIZER_FILE: state, **small}

        return files

    @contextmanager
    def servable(self) -> Iterator[Drafter[Any] | None]:
        """Give the main process the drafter that would be served: the average if there is one."""
        averaged = nullcontext() if self.average is None else self.average.applied()
        with averaged, self.spread.assembled() as drafter:
            yield drafter

    def load(self, checkpoints: CheckpointFolder, name: str) -> None:
        """Restore weights, moments, average and random states, bit for bit.

        Raises:
            CheckpointError: a file is missing or damaged, or does not fit the drafter.
        """
        saved = checkpoints.load(name, OPTIMIZER_FILE)
        checkpoints.load(name, SCHEDULER_FILE)
        load_master(self.drafter.trainable_parameters(), saved["master"], self.spread)
        load_optimizer_states(self.optimizers, saved["optimizers"], self.spread)
        if self.average is not None:
            self.average.load(saved["average"], self.spread)
        random = rng_file(self.ranks.rank)
        # A rank the saved run did not have starts with its own; nothing trained depends on it.
        if self.ranks.is_main or (checkpoints.root / name / random).exists():
            restore_rng(checkpoints.load(name, random))

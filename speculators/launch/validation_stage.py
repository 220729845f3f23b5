"""What is measured on held-out rows while training: loss and the acceptance walk."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from speculators.algorithms.base import Drafter, StepContext
from speculators.data.loader import RowLoader
from speculators.data.types import PackedBatch
from speculators.evaluation.walk import acceptance_walk
from speculators.training.metrics import MetricSums
from speculators.verifier.head import VerifierHead


@dataclass(frozen=True)
class Validation:
    """Measures a drafter on the same rows with the same anchors every time it is called.

    Attributes:
        loader: the held-out rows, not shuffled.
        teacher: the verifier's norm and head.
        end_of_turn_ids: tokens that end an answer.
        device: where rows are sent.
        seed: of the anchors; with the row's number it decides them.
    """

    loader: RowLoader
    teacher: VerifierHead
    end_of_turn_ids: Collection[int]
    device: torch.device
    seed: int

    def __call__(self, drafter: Drafter[Any]) -> dict[str, Any]:
        """Return loss, its terms, and acceptance as decoding would find it."""
        sums = MetricSums()
        walk = acceptance_walk(
            drafter,
            self.teacher,
            self._rows(drafter, sums),
            end_of_turn_ids=self.end_of_turn_ids,
        )
        found = walk.to_dict(seed=self.seed)
        found.pop("definition", None)
        return {**sums.values(), **found}

    def _rows(self, drafter: Drafter[Any], sums: MetricSums) -> Iterator[PackedBatch]:
        """Yield every row once, adding its loss up on the way: states are fetched once."""
        for number, batch in enumerate(self.loader.iterate(epoch=0)):
            row = batch.to(self.device)
            context = StepContext(self.seed, step=0, row=number)
            sums.add(drafter.compute_loss(row, self.teacher, context))
            yield row

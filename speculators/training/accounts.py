"""What steps have done, taken in when their numbers have arrived on the host."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import torch

from speculators.training.guard import note_bad_step, stop_if_lost
from speculators.training.journal import Journal, NoJournal
from speculators.training.metrics import MetricSums, merged_states
from speculators.training.ranks import Ranks
from speculators.training.state import Position, TrainerState
from speculators.training.step import StepReport


def steps_ahead(device: torch.device) -> int:
    """Return how many steps may be asked for before their numbers are."""
    return 0 if device.type == "cpu" else 1


class Accounts:
    """Counts tokens, metrics and skipped steps, in the order of the steps.

    An accelerator is still busy with a step when the host has asked for it. So the newest step is
    settled after the next one has been asked for, and the host is at most that one step ahead;
    whoever needs the numbers of all steps settles them all.

    Args:
        state: where the run stands; brought up to date.
        device: where steps run.
        max_bad_steps: skipped steps in a row after which a run is lost.
        ranks: of the run.
    """

    def __init__(
        self, state: TrainerState, device: torch.device, max_bad_steps: int, ranks: Ranks
    ) -> None:
        self.sums = MetricSums()
        self._state, self._device, self._ranks = state, device, ranks
        self._max_bad_steps = max_bad_steps
        self._open: deque[tuple[Position, StepReport]] = deque()
        self._ahead = steps_ahead(device)
        self._load(state.metric_sums)

    def add(self, report: StepReport, journal: Journal | NoJournal) -> None:
        """Take in the step that was just made; settle those before it.

        Raises:
            SpeculatorsError: too many steps in a row were skipped.
        """
        self._open.append((dataclasses.replace(self._state.position), report))
        self._settle(journal, self._ahead)

    def settle(self, journal: Journal | NoJournal) -> None:
        """Wait for the numbers of every step made.

        Raises:
            SpeculatorsError: too many steps in a row were skipped.
        """
        self._settle(journal, 0)

    def means(self) -> dict[str, Any]:
        """Return the metrics of all ranks since the last call, and begin anew."""
        values = {"loss": None, "gradient_norm": None, **self.sums.values(self._ranks)}
        self.sums.clear()
        return values

    def _settle(self, journal: Journal | NoJournal, keep: int) -> None:
        while len(self._open) > keep:
            place, report = self._open.popleft()
            position = self._state.position
            position.tokens += report.num_tokens
            position.supervised_tokens += report.num_supervised
            if report.bad_tensor is None:
                self.sums.add(report.output)
            if report.gradient_norm is not None:
                self.sums.add_value("gradient_norm", report.gradient_norm, report.output.loss_sum)
            journal.advance(place.step)
            bad = note_bad_step(self._state, report)
            if bad is not None:
                journal.metrics("bad_step", place, bad)
                stop_if_lost(self._state, place.step, self._max_bad_steps, bad)

    def _load(self, saved: list[dict[str, Any]]) -> None:
        """Go on from the sums of a checkpoint, which other ranks may have made."""
        if len(saved) == self._ranks.world_size:
            self.sums.load(saved[self._ranks.rank], self._device)
        elif self._ranks.is_main:
            self.sums.load(merged_states(saved), self._device)

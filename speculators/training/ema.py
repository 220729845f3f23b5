"""An exponential moving average of the weights, in fp32 beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from speculators.errors import CheckpointError
from speculators.training.spread import Spread


class WeightAverage:
    """Follows weights with average = d * average + (1 - d) * weight.

    d starts small and approaches `decay`, min(decay, (1 + n) / (10 + n)) after n updates, so that
    the random initial weights are forgotten in short runs too.

    Args:
        parameters: the weights followed, by name; the average starts equal to them.
        decay: d of a long run.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters = dict(parameters)
        self._decay = decay
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights, once per optimizer step that moved them."""
        decay = min(self._decay, (1 + self._num_updates) / (10 + self._num_updates))
        averages = list(self._average.values())
        weights = [p.detach() for p in self._parameters.values()]
        torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        self._num_updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the drafter have the averaged weights inside the block, and its own after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self, spread: Spread) -> dict[str, object]:
        """Return the whole average and its counter, for a checkpoint."""
        average = {name: spread.snapshot(value) for name, value in self._average.items()}
        return {"num_updates": self._num_updates, "average": average}

    @torch.no_grad()
    def load(self, state: Mapping[str, object] | None, spread: Spread) -> None:
        """Restore what `state` returned.

        Raises:
            CheckpointError: the checkpoint has no average, or one of other tensors.
        """
        average = None if state is None else state["average"]
        if not isinstance(average, dict) or average.keys() != self._average.keys():
            raise CheckpointError(
                "optimizer_state_dict.pt: has no average of these weights (training.ema_decay)"
            )
        for name, value in self._average.items():
            value.copy_(spread.place(average[name], value))
        self._num_updates = int(str(state["num_updates"])) if state else 0

    @torch.no_grad()
    def _swap(self) -> None:
        # Copied, not exchanged: sharded or compiled parameters may not change their storage.
        for name, parameter in self._parameters.items():
            weight = parameter.detach().clone()
            parameter.copy_(self._average[name])
            self._average[name].copy_(weight)

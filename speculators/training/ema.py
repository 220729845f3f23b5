"""An exponential moving average of the weights, in fp32 beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from speculators.errors import CheckpointError
from speculators.training.spread import Spread, own_part


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
        device = next(iter(self._average.values())).device
        self._num_updates = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, moved: Bool[Tensor, ""] | bool = True) -> None:
        """Take in the present weights, once per optimizer step.

        Args:
            moved: whether the step moved them; if not, nothing changes. May lie on the device.
        """
        n = self._num_updates
        taken = (1 - ((1 + n) / (10 + n)).clamp(max=self._decay)) * moved
        for name, average in self._average.items():
            own_part(average).lerp_(own_part(self._parameters[name].detach()), taken)
        n += moved

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the drafter have the averaged weights inside the block, and its own after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, object]:
        """Return the average, spread as the weights are, and its counter."""
        return {"num_updates": int(self._num_updates), "average": dict(self._average)}

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
        self._num_updates.fill_(int(str(state["num_updates"])) if state else 0)

    @torch.no_grad()
    def _swap(self) -> None:
        # Copied, not exchanged: sharded or compiled parameters may not change their storage.
        for name, parameter in self._parameters.items():
            weight = parameter.detach().clone()
            parameter.copy_(self._average[name])
            self._average[name].copy_(weight)

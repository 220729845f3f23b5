"""Hidden states kept in memory, so that small runs compute them once and not once per epoch."""

from __future__ import annotations

from speculators.hidden_states.types import HiddenStates


class StatesMemory:
    """Keeps what comes first until its budget is spent, then keeps that.

    Training visits every sample once per epoch, in another order each time. Whatever were evicted
    for a newcomer would be needed no later than the newcomer, so nothing is evicted: a share
    `max_bytes / total` of the samples is found in every epoch after the first.

    Args:
        max_bytes: budget; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._states: dict[str, HiddenStates] = {}

    def __len__(self) -> int:
        return len(self._states)

    def get(self, sample_id: str) -> HiddenStates | None:
        """Return the states of a sample, or None."""
        return self._states.get(sample_id)

    def add(self, sample_id: str, states: HiddenStates) -> None:
        """Keep the states of a sample if they fit, on the CPU."""
        size = states.aux.nbytes + states.last.nbytes
        if sample_id in self._states or self.num_bytes + size > self.max_bytes:
            return
        self._states[sample_id] = HiddenStates(states.aux.cpu(), states.last.cpu())
        self.num_bytes += size

    def clear(self) -> None:
        """Forget everything."""
        self._states.clear()
        self.num_bytes = 0

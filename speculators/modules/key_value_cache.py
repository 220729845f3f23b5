"""Keys and values of one layer along a sequence that only grows."""

from __future__ import annotations

from speculators.modules.decoder import KeyValue

FIRST_CAPACITY = 256


class KeyValueCache:
    """Keys and values of one layer in buffers that double when they are full."""

    def __init__(self) -> None:
        self.length = 0
        self.buffers: KeyValue | None = None

    def append(self, new: KeyValue) -> None:
        """Add the keys and values of new tokens."""
        end = self.length + len(new.keys)
        if self.buffers is None or end > len(self.buffers.keys):
            capacity = max(FIRST_CAPACITY, 2 * end)
            grown = KeyValue(*(t.new_empty(capacity, *t.shape[1:]) for t in new))
            if self.buffers is not None:
                for old, fresh in zip(self.view(), grown, strict=True):
                    fresh[: self.length] = old
            self.buffers = grown
        for buffer, part in zip(self.buffers, new, strict=True):
            buffer[self.length : end] = part
        self.length = end

    def view(self) -> KeyValue:
        """Return what is filled."""
        assert self.buffers is not None
        return KeyValue(*(buffer[: self.length] for buffer in self.buffers))

"""`extract`: filling the store of hidden states ahead of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from speculators.config.schema.problem import Problem, at_least


@dataclass
class ExtractConfig:
    """Which share of the samples this process extracts."""

    rank: int = 0
    """Number of this process, from 0."""
    world_size: int = 1
    """Processes that share the work; a sample belongs to one of them by its content."""
    max_samples: int | None = None
    """Stop after this many; null: all."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        yield from at_least(self, "world_size", 1)
        yield from at_least(self, "max_samples", 1)
        if not 0 <= self.rank < max(1, self.world_size):
            yield Problem(
                "rank", self.rank, f"must lie between 0 and {self.world_size - 1} (world_size - 1)"
            )

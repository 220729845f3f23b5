"""`plan`: memory, disk and time before the start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from speculators.config.schema.problem import Problem, at_least, between


@dataclass
class PlanConfig:
    """For which device, and what is assumed where nothing is known."""

    device: str | None = None
    """h200, h100, a100, rtx4090 or cpu; null: the device of this machine (`device`)."""
    mfu: float = 0.4
    """Assumed share of the device's peak arithmetic that a step reaches."""
    measure: bool = False
    """Make a few real steps on rows of random numbers here, and correct the estimate."""
    measure_steps: int = 3
    """Measured steps, after one that warms up."""
    num_samples: int | None = None
    """Training samples; null: those of the prepared data, else data.max_samples, else 5,000."""
    sample_tokens: int | None = None
    """Mean tokens of a sample; null: those of the prepared data, else 735 (the median of
    ShareGPT), at most a row."""
    supervised_fraction: float | None = None
    """Share of tokens that are supervised; null: that of the prepared data, else 0.5."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        if self.device not in (None, "h200", "h100", "a100", "rtx4090", "cpu"):
            allowed = "allowed: h200, h100, a100, rtx4090, cpu, or null for the one of this machine"
            yield Problem("device", self.device, allowed)
        yield from between(self, "mfu", 0.01, 1)
        yield from at_least(self, "measure_steps", 1)
        yield from at_least(self, "num_samples", 1)
        yield from at_least(self, "sample_tokens", 2)
        yield from between(self, "supervised_fraction", 0.001, 1)

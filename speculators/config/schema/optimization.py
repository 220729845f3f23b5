"""`optimizer` and `schedule`: how weights move, and how the learning rate changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from speculators.config.schema.problem import Problem, at_least, below_one, between, positive


@dataclass
class OptimizerConfig:
    """Common part of every optimizer."""

    name: str = MISSING
    """adamw or muon."""
    lr: float = MISSING
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices only."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        yield from positive(self, "lr")
        yield from at_least(self, "weight_decay", 0)


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW (arXiv:1711.05101)."""

    name: str = "adamw"
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the denominator."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        yield from super().problems()
        yield from below_one(self, "beta1")
        yield from below_one(self, "beta2")
        yield from positive(self, "eps")


@dataclass
class MuonConfig(OptimizerConfig):
    """Muon on the matrices of the layers, AdamW on everything else."""

    name: str = "muon"
    momentum: float = 0.95
    """Momentum of the matrices."""
    adamw_lr: float = MISSING
    """Learning rate of the parameters Muon does not take (norms, biases)."""
    beta1: float = 0.9
    """AdamW part: decay of the first moment."""
    beta2: float = 0.95
    """AdamW part: decay of the second moment."""
    eps: float = 1e-8
    """AdamW part: added to the denominator."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        yield from super().problems()
        yield from positive(self, "adamw_lr")
        yield from below_one(self, "momentum")
        yield from below_one(self, "beta1")
        yield from below_one(self, "beta2")


class ScheduleName(Enum):
    """Shape of the learning rate after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@dataclass
class ScheduleConfig:
    """Learning rate over the run, as a factor of the peak."""

    name: ScheduleName = MISSING
    """constant, linear or cosine."""
    warmup_fraction: float = 0.04
    """Share of all steps that rise linearly from 0."""
    final_fraction: float = 0.0
    """Factor the rate has fallen to at the end, one step after the last (linear, cosine)."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        yield from between(self, "warmup_fraction", 0, 1)
        yield from between(self, "final_fraction", 0, 1)

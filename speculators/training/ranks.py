"""The processes of one run, as one of them sees it, and what all of them agree on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Who this process is. Every method must be called by all processes in the same order.

    A process that dies never leaves the others waiting: whoever started them ends them all.

    Attributes:
        rank: number of this process, 0-based.
        world_size: how many there are.
        control: group over which small decisions travel, on the CPU and without a time limit
            that validation or the preparation of data could reach; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files, draws progress and validates."""
        return self.rank == 0

    def highest(self, number: int) -> int:
        """Return the largest number any process brings."""
        if self.world_size == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.control)
        return int(value)

    def total(self, values: Float[Tensor, "value"]) -> Float[Tensor, "value"]:
        """Return the sum over processes, on the device of `values`, without waiting for it."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Return what each process brings, by rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def share(self, value: T) -> T:
        """Return what the main process brings."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            dist.barrier(group=self.control)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process go through the block before the others, which find its results."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

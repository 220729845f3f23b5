"""How weights and gradients are spread over the processes of a run.

`Replicated`: each process has all weights, gradients are summed once per step (one process, and
`launcher=ddp`). `Sharded`: each process owns a part of weights, gradients and optimizer state, by
PyTorch's `fully_shard` (`launcher=fsdp`). The drafter is one unit, gathered when a forward pass
begins and let go of after the backward pass: a drafter is small beside its optimizer state, its
parts may run any number of times, and an algorithm need not know. Everywhere gradients are sums
over processes, never means.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from speculators.algorithms.base import Drafter
from speculators.training.ranks import Ranks

_BUCKET_BYTES = 64 * 2**20


@runtime_checkable
class Spread(Protocol):
    """What trainer and checkpoints need to know."""

    def expect(self, *, last: bool) -> None:
        """Say before a backward pass whether it is the step's last."""
        ...

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add the gradients of all processes up, once after the last backward pass of a step."""
        ...

    def whole(self, tensor: Tensor) -> Tensor:
        """Return a weight, moment or norm as one tensor; every process must call."""
        ...

    def snapshot(self, tensor: Tensor) -> Tensor:
        """Return a copy of `whole` in main memory, for the main process to write."""
        ...

    def place(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return the whole `tensor`, which every process has, spread as `like` is."""
        ...

    @contextmanager
    def assembled(self) -> Iterator[Drafter[Any] | None]:
        """Give the main process a drafter with all present weights, the others None."""
        ...


class Replicated:
    """All weights in every process; a `Spread`."""

    def __init__(self, drafter: Drafter[Any], ranks: Ranks) -> None:
        self._drafter, self._ranks = drafter, ranks

    def expect(self, *, last: bool) -> None:
        """Nothing travels during backward passes."""

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum in buckets, a missing gradient counting as zero."""
        if self._ranks.world_size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def whole(self, tensor: Tensor) -> Tensor:
        """Return it: it is whole."""
        return tensor.detach()

    def snapshot(self, tensor: Tensor) -> Tensor:
        """Copy it."""
        return tensor.detach().to("cpu", copy=True)

    def place(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return it: nothing is split."""
        return tensor

    @contextmanager
    def assembled(self) -> Iterator[Drafter[Any] | None]:
        """Give the drafter itself."""
        yield self._drafter if self._ranks.is_main else None


class Sharded:
    """A part of every weight in each process, by `fully_shard`; a `Spread`.

    Args:
        drafter: on its device, fp32.
        ranks: of the run.
        device: of the drafter.
        arithmetic: weights are gathered in it; gradients are summed in fp32.
    """

    def __init__(
        self, drafter: Drafter[Any], ranks: Ranks, device: torch.device, arithmetic: torch.dtype
    ) -> None:
        # Buffers are the verifier's tables, several GiB: the copy shares them.
        memo = {id(buffer): buffer for buffer in drafter.buffers()}
        self._whole = copy.deepcopy(drafter, memo) if ranks.is_main else None
        self._drafter = drafter
        self._mesh = init_device_mesh(device.type, (ranks.world_size,))
        policy = MixedPrecisionPolicy(
            param_dtype=arithmetic, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        # Frozen weights need no sharding of moments, and validation reads them as they are.
        frozen = {p for p in drafter.parameters() if not p.requires_grad}
        fully_shard(
            drafter,
            mesh=self._mesh,
            mp_policy=policy,
            reshard_after_forward=False,
            ignored_params=frozen,
        )
        assert isinstance(drafter, FSDPModule)
        drafter.set_gradient_divide_factor(1.0)
        drafter.set_force_sum_reduction_for_comms(True)
        register_fsdp_forward_method(drafter, "compute_loss")

    def expect(self, *, last: bool) -> None:
        """Gradients travel during the last backward pass only."""
        assert isinstance(self._drafter, FSDPModule)
        self._drafter.set_requires_gradient_sync(last)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Nothing is left to do: the last backward pass has summed them."""

    def whole(self, tensor: Tensor) -> Tensor:
        """Gather it."""
        tensor = tensor.detach()
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def snapshot(self, tensor: Tensor) -> Tensor:
        """Gather and copy it; processes that do not write keep nothing."""
        whole = self.whole(tensor)
        return whole.to("cpu", copy=True) if self._whole is not None else whole.new_empty(0)

    def place(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Take this process's part of it."""
        if not isinstance(like, DTensor) or tensor.shape != like.shape:
            return tensor
        here = tensor.to(like.device, like.dtype)
        return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)

    @contextmanager
    def assembled(self) -> Iterator[Drafter[Any] | None]:
        """Gather every weight into a drafter that is kept for this."""
        targets = {} if self._whole is None else dict(self._whole.named_parameters())
        with torch.no_grad():
            for name, parameter in self._drafter.named_parameters():
                weight = self.whole(parameter)
                if name in targets:
                    targets[name].copy_(weight)
        yield self._whole


def spread_drafter(
    drafter: Drafter[Any], ranks: Ranks, *, sharded: bool, device: torch.device, bfloat16: bool
) -> Spread:
    """Spread a drafter that lies on `device` with fp32 weights, in place."""
    if not sharded:
        return Replicated(drafter, ranks)
    return Sharded(drafter, ranks, device, torch.bfloat16 if bfloat16 else torch.float32)


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a weight or moment, to work on in place."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(g.nbytes for g in bucket) >= _BUCKET_BYTES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket

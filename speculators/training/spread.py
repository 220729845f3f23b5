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
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from speculators.algorithms.base import Drafter
from speculators.config.schema import LauncherConfig
from speculators.errors import CheckpointError
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

    def stage(self, state: dict[str, Any], aside: Path) -> Callable[[], dict[str, Any] | None]:
        """Copy weights and moments so that training may go on; every process must call.

        Args:
            state: nested, of tensors spread as the drafter's are, and plain values.
            aside: a folder that does not exist, for what processes have to hand over.

        Returns:
            To be called once, by every process and from any thread: gives the main process the
            copy, of whole tensors on the host, and the others None. It raises a `CheckpointError`
            in all of them when one could not hand its part over.
        """
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
        self._stager = new_stager(next(drafter.parameters()).device)

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

    def stage(self, state: dict[str, Any], aside: Path) -> Callable[[], dict[str, Any] | None]:
        """Copy it in the main process."""
        copied: Any = self._stager.stage(state) if self._ranks.is_main else None
        return lambda: copied

    def place(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return a copy: nothing is split."""
        return tensor.to(like.device, copy=True)

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
        cpu_offload: keep weights, gradients and moments on the host, and update them there.
    """

    def __init__(
        self,
        drafter: Drafter[Any],
        ranks: Ranks,
        device: torch.device,
        arithmetic: torch.dtype,
        *,
        cpu_offload: bool = False,
    ) -> None:
        # Buffers are the verifier's tables, several GiB: the copy shares them.
        memo = {id(buffer): buffer for buffer in drafter.buffers()}
        self._whole = copy.deepcopy(drafter, memo) if ranks.is_main else None
        self._drafter, self._ranks = drafter, ranks
        self._stager = new_stager(device)
        self._saving: Any = dist.new_group(
            backend="gloo"
        )  # its messages overtake those of training
        self._alone: Any = dist.new_group([0], backend="gloo")
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
            offload_policy=CPUOffloadPolicy(pin_memory=device.type == "cuda")
            if cpu_offload
            else OffloadPolicy(),
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

    def stage(self, state: dict[str, Any], aside: Path) -> Callable[[], dict[str, Any] | None]:
        """Copy this process's part, and write it to `aside` in the background.

        By `torch.distributed.checkpoint`, as safetensors; the main process puts the parts together.
        """
        leaves, structure = tree_flatten(state)
        tensors = {str(n): leaf for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        shapes = {key: (tensor.shape, tensor.dtype) for key, tensor in tensors.items()}
        written = async_save(
            tensors,
            storage_writer=HuggingFaceStorageWriter(str(aside), save_distributed=True),
            process_group=self._saving,
            async_stager=self._stager,
        )
        assert isinstance(written, Future)

        def whole() -> dict[str, Any] | None:
            try:
                written.result()
            except CheckpointException as error:  # of any process; every one hears of it
                if self._ranks.is_main:
                    shutil.rmtree(aside, ignore_errors=True)
                raise CheckpointError(_unwritten(aside, error)) from error
            if not self._ranks.is_main:
                return None
            found = {key: torch.empty(shape, dtype=kind) for key, (shape, kind) in shapes.items()}
            reader = HuggingFaceStorageReader(str(aside))
            load(found, storage_reader=reader, process_group=self._alone)
            shutil.rmtree(aside)
            return tree_unflatten([found.get(str(n), x) for n, x in enumerate(leaves)], structure)

        return whole

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
    drafter: Drafter[Any],
    ranks: Ranks,
    launcher: LauncherConfig,
    *,
    device: torch.device,
    bfloat16: bool,
) -> Spread:
    """Spread a drafter that lies on `device` with fp32 weights, in place."""
    if launcher.name != "fsdp":
        return Replicated(drafter, ranks)
    arithmetic = torch.bfloat16 if bfloat16 else torch.float32
    return Sharded(drafter, ranks, device, arithmetic, cpu_offload=launcher.cpu_offload)


def new_stager(device: torch.device) -> DefaultStager:
    """Return what copies weights to the host; its buffers are pinned for a GPU, and used again."""
    pinned = device.type == "cuda"
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=pinned,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=pinned,
        )
    )


def _unwritten(aside: Path, error: CheckpointException) -> str:
    rank, (reason, _) = next(iter(sorted(error.failures.items())))
    first = str(reason).partition("\n")[0]
    return (
        f"{aside.parent}: rank {rank} cannot write its part of a checkpoint: {first}; nothing "
        "half-written was left, make room or choose another output_dir and start again"
    )


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

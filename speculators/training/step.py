"""One optimizer step over several packed rows: exact under accumulation, guarded against NaN."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from speculators.algorithms.base import Drafter, Output, StepContext
from speculators.config.schema import Precision
from speculators.data.types import PackedBatch
from speculators.modules.parts import part
from speculators.training.optimizers import set_learning_rate
from speculators.training.ranks import Ranks
from speculators.training.spread import Spread
from speculators.verifier.head import VerifierHead

_NORM_EPS = 1e-6


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        output: losses and metrics summed over the rows; nothing is a mean.
        num_tokens: tokens that are not padding.
        num_supervised: tokens of the loss mask.
        learning_rate: of the first parameter group.
        gradient_norm: before clipping; None when there was nothing to learn from.
        bad_tensor: first NaN or infinite tensor, which made the step be skipped; None if all
            are finite.
        sample_ids: what the rows were packed from.
    """

    output: Output
    num_tokens: int
    num_supervised: int
    learning_rate: float
    gradient_norm: float | None
    bad_tensor: str | None
    sample_ids: tuple[str, ...]

    @property
    def moved(self) -> bool:
        """Whether the weights were updated."""
        return self.gradient_norm is not None and self.bad_tensor is None


@dataclass(frozen=True)
class Stepper:
    """Forward, backward and update.

    Attributes:
        drafter: what is trained, with fp32 weights on `device`.
        teacher: the verifier's norm and head on `device`.
        optimizers: together they move every trainable parameter.
        device: where rows are sent.
        precision: arithmetic of forward and backward; auto is bfloat16 on an accelerator.
        clip_norm: largest gradient norm, or None.
        seed: of the run; with step and row it decides everything random in a forward pass.
        ranks: the processes that make a step together.
        spread: how weights and gradients are spread over them.
    """

    drafter: Drafter[Any]
    teacher: VerifierHead
    optimizers: Sequence[Optimizer]
    device: torch.device
    precision: Precision
    clip_norm: float | None
    seed: int
    ranks: Ranks
    spread: Spread

    @part("step")
    def run(self, rows: Iterable[PackedBatch], count: int, step: int, factor: float) -> StepReport:
        """Train on the rows of all ranks as if they were one.

        Each row's summed loss is back-propagated as it is; the gradient is divided once by the
        divisor of all rows of all ranks, so that only their number matters, not who had them. A
        step whose divisor is 0 changes nothing, and neither does one with a NaN or infinite loss
        or gradient.

        Args:
            rows: packed rows of this rank.
            count: how many, at least one; the same on every rank.
            step: 0-based index of the step.
            factor: of the peak learning rate.
        """
        learning_rate = set_learning_rate(self.optimizers, factor)
        tokens = supervised = torch.zeros((), dtype=torch.int64)
        total: Output | None = None
        sample_ids: tuple[str, ...] = ()
        for index, row in enumerate(rows):
            self.spread.expect(last=index == count - 1)
            place = index * self.ranks.world_size + self.ranks.rank
            output = self._forward_backward(row, StepContext(self.seed, step, place))
            total = output if total is None else add_outputs(total, output)
            tokens = tokens + (row.document_ids >= 0).sum()
            supervised = supervised + row.loss_mask.sum()
            sample_ids += row.sample_ids
        if total is None:
            raise ValueError("a step needs at least one row")
        seen = torch.stack([tokens, supervised])
        norm, bad_tensor, (num_tokens, num_supervised) = self._update(total, seen)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return StepReport(
            total, num_tokens, num_supervised, learning_rate, norm, bad_tensor, sample_ids
        )

    def autocast(self) -> torch.autocast:
        """Return the arithmetic of forward passes as a context manager."""
        return autocast(self.precision, self.device)

    def _forward_backward(self, row: PackedBatch, context: StepContext) -> Output:
        output = self._forward(row.to(self.device, non_blocking=True), context)
        if output.loss_sum.requires_grad:
            self._backward(output)
        return Output(output.loss_sum.detach(), output.divisor.detach(), output.sums, output.counts)

    @part("forward")
    def _forward(self, row: PackedBatch, context: StepContext) -> Output:
        with self.autocast():
            return self.drafter.compute_loss(row, self.teacher, context)

    @part("backward")
    def _backward(self, output: Output) -> None:
        output.loss_sum.backward()

    @part("optimizer")
    def _update(
        self, total: Output, seen: Int[Tensor, "kind"]
    ) -> tuple[float | None, str | None, tuple[int, int]]:
        parameters = self.drafter.trainable_parameters()
        self.spread.sum_gradients(list(parameters.values()))
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        raw_norm = self.spread.whole(torch.nn.utils.get_total_norm(gradients))
        # The only wait for the device in a step: three numbers decide whether it counts. Counts
        # of tokens are exact in fp64 (fp32 where a device has nothing wider).
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        sums = [total.loss_sum, total.divisor, *seen.unbind()]
        sums = self.ranks.total(torch.stack([t.to(self.device, wide) for t in sums]))
        loss, divisor, *counts, raw = [*sums, raw_norm.to(self.device, wide)]
        loss, divisor, raw, *counts = torch.stack([loss, divisor, raw, *counts]).tolist()
        num_tokens, num_supervised = map(int, counts)
        if not all(map(math.isfinite, (loss, divisor, raw))):
            return None, first_bad_tensor(total, parameters), (num_tokens, num_supervised)
        if divisor <= 0:
            return None, None, (num_tokens, num_supervised)
        norm = raw / divisor
        scale = 1.0 if self.clip_norm is None else min(1.0, self.clip_norm / (norm + _NORM_EPS))
        torch._foreach_mul_(gradients, scale / divisor)  # pyright: ignore[reportPrivateImportUsage]
        for optimizer in self.optimizers:
            optimizer.step()
        return norm, None, (num_tokens, num_supervised)


def uses_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether forward and backward passes run in bf16; auto: on every device but the CPU."""
    return precision is Precision.bfloat16 or (precision is Precision.auto and device.type != "cpu")


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return bf16 autocast where `precision` asks for it."""
    enabled = uses_bfloat16(precision, device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def add_outputs(a: Output, b: Output) -> Output:
    """Return the exact sum of two outputs; a metric only one of them has counts once."""
    return Output(
        a.loss_sum + b.loss_sum,
        a.divisor + b.divisor,
        _added(a.sums, b.sums),
        _added(a.counts, b.counts),
    )


def first_bad_tensor(total: Output, parameters: Mapping[str, nn.Parameter]) -> str:
    """Name the first tensor with a NaN or infinite value: weights, then loss, then gradients."""
    for name, parameter in parameters.items():
        if not _finite(parameter):
            return f"weight {name}"
    if not _finite(total.loss_sum) or not _finite(total.divisor):
        return "loss"
    for name, parameter in parameters.items():
        if parameter.grad is not None and not _finite(parameter.grad):
            return f"gradient of {name}"
    return "gradient norm"


def _added(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**a, **b, **{name: a[name] + b[name] for name in a if name in b}}


def _finite(tensor: Float[Tensor, "..."]) -> bool:
    return bool(tensor.detach().isfinite().all())

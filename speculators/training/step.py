"""One optimizer step over several packed rows: exact under accumulation, guarded against NaN."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer

from speculators.algorithms.base import Drafter, Output, StepContext
from speculators.config.schema import Precision
from speculators.data.types import HostRow, PackedBatch
from speculators.modules.compiling import fused
from speculators.modules.parts import part
from speculators.modules.transfer import Later, send
from speculators.training.carrier import Carrier
from speculators.training.metrics import widened, widest
from speculators.training.optimizers import set_learning_rate, step_if
from speculators.training.ranks import Ranks
from speculators.training.spread import Spread
from speculators.verifier.head import VerifierHead

_NORM_EPS = 1e-6
_NUMBERS = ("loss", "divisor", "tokens", "supervised", "norm")


class StepReport:
    """What one step did. Its numbers stay on the device until one of them is asked for.

    Args:
        output: losses and metrics summed over the rows of this rank; nothing is a mean.
        learning_rate: of the first parameter group.
        sample_ids: what the rows were packed from.
        usable: whether the weights were updated, on their device.
        numbers: `_NUMBERS` of all ranks, then the norm of each gradient before division.
        weights: what was trained, by name.
        with_gradient: names of the weights that have one.
    """

    def __init__(
        self,
        output: Output,
        learning_rate: float,
        sample_ids: tuple[str, ...],
        usable: Bool[Tensor, ""],
        numbers: Float[Tensor, "number"],
        weights: Mapping[str, nn.Parameter],
        with_gradient: Sequence[str],
    ) -> None:
        self.output, self.learning_rate, self.sample_ids = output, learning_rate, sample_ids
        self.usable, self._numbers = usable, Later(numbers)
        self._weights, self._with_gradient = weights, with_gradient

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding, of all ranks."""
        return int(self._found["tokens"])

    @property
    def num_supervised(self) -> int:
        """Tokens of the loss masks, of all ranks."""
        return int(self._found["supervised"])

    @property
    def gradient_norm(self) -> float | None:
        """Norm before clipping; None when there was nothing to learn from, or it is not finite."""
        divisor, norm = self._found["divisor"], self._found["norm"]
        return norm / divisor if self._is_finite and divisor > 0 else None

    @cached_property
    def bad_tensor(self) -> str | None:
        """The first NaN or infinite tensor, which made the step be skipped; None if all are finite.

        Weights first, then the loss, then gradients.
        """
        if self._is_finite:
            return None
        for name, weight in self._weights.items():
            if not bool(weight.detach().isfinite().all()):
                return f"weight {name}"
        if not all(math.isfinite(self._found[name]) for name in ("loss", "divisor")):
            return "loss"
        norms = zip(self._with_gradient, self._values[len(_NUMBERS) :], strict=True)
        bad = (name for name, norm in norms if not math.isfinite(norm))
        return next((f"gradient of {name}" for name in bad), "gradient norm")

    @property
    def moved(self) -> bool:
        """Whether the weights were updated."""
        return self.gradient_norm is not None

    @cached_property
    def _values(self) -> list[float]:
        return self._numbers.values()

    @property
    def _found(self) -> dict[str, float]:
        return dict(zip(_NUMBERS, self._values, strict=False))

    @property
    def _is_finite(self) -> bool:
        return all(map(math.isfinite, self._values[: len(_NUMBERS)]))


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
        compile: whether `torch.compile` may fuse the drafter's regions.
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
    compile: bool = False

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
            integers = HostRow.of(row)
            tokens = tokens + (integers.document_ids >= 0).sum()
            supervised = supervised + integers.loss_mask.sum()
            sample_ids += row.sample_ids
        if total is None:
            raise ValueError("a step needs at least one row")
        usable, numbers = self._update(total, [tokens, supervised])
        weights = self.drafter.trainable_parameters()
        with_gradient = [name for name, weight in weights.items() if weight.grad is not None]
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return StepReport(total, learning_rate, sample_ids, usable, numbers, weights, with_gradient)

    def autocast(self) -> torch.autocast:
        """Return the arithmetic of forward passes as a context manager."""
        return autocast(self.precision, self.device)

    def _forward_backward(self, row: PackedBatch, context: StepContext) -> Output:
        output = self._forward(self._carrier.bring(row), context)
        if output.loss_sum.requires_grad:
            self._backward(output)
        # Widened before rows are added: sums do not depend on how rows fall on ranks.
        loss, divisor = widened(output.loss_sum), widened(output.divisor)
        return Output(loss, divisor, output.sums, output.counts)

    @part("forward")
    def _forward(self, row: PackedBatch, context: StepContext) -> Output:
        with self.autocast(), fused(self.compile):
            return self.drafter.compute_loss(row, self.teacher, context)

    @part("backward")
    def _backward(self, output: Output) -> None:
        output.loss_sum.backward()

    @part("optimizer")
    def _update(self, total: Output, seen: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Divide the gradient, clip it and move the weights, or nothing if it is not finite.

        All of it is decided on the device, so that the host can go on with the next step. Returns
        whether the weights moved, and the numbers of the report.
        """
        parameters = list(self.drafter.trainable_parameters().values())
        home = parameters[0].device  # the host, for weights that are kept there
        self.spread.sum_gradients(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norms = self._norms(gradients).to(home)
        raw = torch.linalg.vector_norm(norms)
        mine = [total.loss_sum, total.divisor, *(send(t, self.device) for t in seen)]
        sums = self.ranks.total(torch.stack([widened(t) for t in mine]))
        numbers = torch.stack([*sums.to(home), raw])
        divisor = numbers[1]
        usable = numbers.isfinite().all() & (divisor > 0)
        scale = torch.where(usable, divisor, 1.0).reciprocal()
        if self.clip_norm is not None:
            scale = scale * (self.clip_norm / (raw * scale + _NORM_EPS)).clamp(max=1.0)
        if gradients:
            torch._foreach_mul_(gradients, scale.to(gradients[0].dtype))  # pyright: ignore[reportPrivateImportUsage]
        for optimizer in self.optimizers:
            step_if(optimizer, usable)
        return usable, torch.cat([numbers, norms])

    def _norms(self, gradients: list[Tensor]) -> Float[Tensor, "gradient"]:
        """Return the norm of each whole gradient."""
        if not gradients:
            return torch.zeros(0, dtype=widest(self.device))
        norms = torch.stack(torch._foreach_norm(gradients))  # pyright: ignore[reportPrivateImportUsage]
        return widened(self.spread.whole(norms))

    @cached_property
    def _carrier(self) -> Carrier:
        return Carrier(self.device)


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


def _added(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    both = {name: widened(a[name]) + widened(b[name]) for name in a if name in b}
    return {**a, **b, **both}

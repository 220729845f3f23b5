"""The draft head and its losses, slot by slot, without logits of the size `slot x vocabulary`.

Two ways, equal up to rounding:

* `ce` and `kl` with a frozen head need only the log-partition of a slot and its gradient
  (`speculators.modules.partition`): with p the verifier's distribution and m = sum p[v] W[v],
  ce = log Z - x.W[y] and kl = log Z - x.m + sum p log p. The verifier's part is computed once per
  token however many slots share it.
* every other term, or a head that is trained, works through chunks of slots with whole rows of
  logits and closed-form gradients (`speculators.modules.divergences`).

A frozen head's gradient dL/dx is formed in the forward pass; the backward pass scales its rows by
what comes in, so weights of slots and divisors are plain autograd outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from speculators.modules.divergences import (
    AGAINST_VERIFIER,
    Distributions,
    cross_entropy,
    needs_verifier,
)
from speculators.modules.gemm import matmul_t, pad_rows
from speculators.modules.partition import expectation, partition, top_entries
from speculators.modules.parts import part
from speculators.modules.transfer import send

_CHUNK_BYTES = {"cpu": 8 * 2**20}
_CHUNK_BYTES_ACCELERATOR = 512 * 2**20
_TILED = frozenset({"ce", "kl"})


@dataclass(frozen=True)
class Teacher:
    """The verifier's opinion on the tokens slots have to predict.

    Attributes:
        states: input of the verifier's head at every base position some slot needs, each once.
        head: the verifier's head, rows of the draft vocabulary in its order.
        index: row of `states` for every slot, ascending, on the host.
        softcap: cap c of c * tanh(logits / c), or None.
    """

    states: Float[Tensor, "base hidden"]
    head: Float[Tensor, "draft_vocab hidden"]
    index: Int[Tensor, "slot"]
    softcap: float | None = None


@dataclass(frozen=True)
class ChunkedLoss:
    """Losses of every slot.

    Attributes:
        loss: weighted sum of the terms, differentiable with respect to `hidden`.
        terms: every term unweighted, detached.
        correct: whether the slot's target is what would be drafted, `top_tokens`.
    """

    loss: Float[Tensor, "slot"]
    terms: dict[str, Float[Tensor, "slot"]]
    correct: Bool[Tensor, "slot"]


@part("head and loss")
def chunked_head_loss(
    hidden: Float[Tensor, "slot hidden"],
    head: Float[Tensor, "draft_vocab hidden"],
    weights: Mapping[str, float],
    *,
    labels: Int[Tensor, "slot"],
    targets: Int[Tensor, "slot"] | None = None,
    teacher: Teacher | None = None,
) -> ChunkedLoss:
    """Apply the head to every slot and compare with labels and teacher.

    Products run in autocast's number format if it is on, else in that of `hidden`; everything
    after them in fp32.

    Args:
        hidden: input of the head, after the final norm.
        head: rows of the draft vocabulary; trained if it requires gradients.
        weights: factor of each term, as configured.
        labels: draft id `ce` asks for, -1 where there is none (then ce is 0).
        targets: draft id `correct` asks for, -1 where it cannot be drafted; None: `labels`.
        teacher: needed by every term but `ce`.
    """
    if needs_verifier(weights) and teacher is None:
        raise ValueError(f"terms {sorted(weights)} compare with the verifier: give a teacher")
    targets = labels if targets is None else targets
    kind = hidden.device.type
    on = torch.is_autocast_enabled(kind)
    work = torch.get_autocast_dtype(kind) if on else hidden.dtype
    x, rows = hidden.to(work), head.to(work)
    if not torch.is_grad_enabled():
        x, rows = x.detach(), rows.detach()
    if teacher is not None:
        teacher = Teacher(
            teacher.states.to(work), _as(teacher.head, head, rows), teacher.index, teacher.softcap
        )
    with torch.autocast(kind, enabled=False):
        if _TILED.issuperset(weights) and not rows.requires_grad:
            return _tiled(x, rows, weights, labels, targets, teacher)
        loss, correct, *terms = _RowChunks.apply(x, rows, weights, labels, targets, teacher)
    return ChunkedLoss(loss, dict(zip(weights, terms, strict=True)), correct)


def _as(table: Tensor, head: Tensor, converted: Tensor) -> Tensor:
    """Convert the teacher's head, without a second copy when it is the draft's own."""
    return converted if table is head else table.to(converted.dtype)


def _tiled(
    x: Tensor,
    head: Tensor,
    weights: Mapping[str, float],
    labels: Tensor,
    targets: Tensor,
    teacher: Teacher | None,
) -> ChunkedLoss:
    """Compute `ce` and `kl` from log-partitions."""
    part = partition(x, head, labels)
    terms: dict[str, Tensor] = {}
    if "ce" in weights:
        terms["ce"] = torch.where(labels >= 0, part.log_partition - part.label_logit, 0)
    if "kl" in weights:
        assert teacher is not None
        moments = expectation(teacher.states, teacher.head, head, teacher.softcap)
        index = send(teacher.index, x.device)
        expected_logit = (x.to(moments.mean.dtype) * moments.mean[index]).sum(-1)
        terms["kl"] = part.log_partition - expected_logit + moments.negative_entropy[index]
    loss = sum(
        (weights[name] * terms[name] for name in weights), torch.zeros_like(part.log_partition)
    )
    detached = {name: term.detach() for name, term in terms.items()}
    return ChunkedLoss(loss, detached, part.top_token == targets)


class _RowChunks(torch.autograd.Function):
    """Whole rows of logits, chunk by chunk. Outputs: loss, correct, then each term."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        head: Tensor,
        weights: Mapping[str, float],
        labels: Tensor,
        targets: Tensor,
        teacher: Teacher | None,
    ) -> tuple[Tensor, ...]:
        trained = ctx.needs_input_grad[1]
        wide = torch.promote_types(x.dtype, torch.float32)
        values = torch.zeros(len(weights), len(x), dtype=wide, device=x.device)
        correct = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] and not trained else None
        for rows in _chunks(x, head):
            logits = _draft_logits(x[rows], head)
            correct[rows] = top_entries(logits)[1] == targets[rows]
            grad = _compare(logits, rows, weights, labels, teacher, values)
            if grad_x is not None:
                padded = matmul_t(pad_rows(grad.to(head.dtype)), head.T)
                grad_x[rows] = padded[: len(grad)]
        if trained:
            ctx.save_for_backward(x, head)
            ctx.rest = (weights, labels, targets, teacher)
        else:
            ctx.save_for_backward(grad_x)
        terms = tuple(values)
        ctx.mark_non_differentiable(correct, *terms)
        loss = torch.zeros_like(values[0])
        for weight, term in zip(weights.values(), terms, strict=True):
            loss.add_(term, alpha=weight)
        return (loss, correct, *terms)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0][:, None]
        if len(ctx.saved_tensors) == 1:
            (grad_x,) = ctx.saved_tensors
            return (grad_x * scale).to(grad_x.dtype), None, None, None, None, None
        x, head = ctx.saved_tensors
        weights, labels, _, teacher = ctx.rest
        unused = torch.zeros(len(weights), len(x), dtype=scale.dtype, device=x.device)
        grad_x, grad_head = torch.zeros_like(x), torch.zeros_like(head, dtype=scale.dtype)
        for rows in _chunks(x, head):
            logits = _draft_logits(x[rows], head)
            grad = _compare(logits, rows, weights, labels, teacher, unused) * scale[rows]
            grad = grad.to(head.dtype)
            grad_x[rows] = grad @ head
            grad_head += grad.T @ x[rows]
        return grad_x, grad_head.to(head.dtype), None, None, None, None


def _compare(
    logits: Tensor,
    rows: slice,
    weights: Mapping[str, float],
    labels: Tensor,
    teacher: Teacher | None,
    values: Tensor,
) -> Tensor:
    """Write each term's values for a chunk; return the gradient of their weighted sum."""
    log_p = None
    if teacher is not None and needs_verifier(weights):
        log_p = _teacher_log_probabilities(teacher, rows)
    at = Distributions(logits.log_softmax(-1), log_p)
    total = torch.zeros_like(logits)
    for row, (name, weight) in zip(values, weights.items(), strict=True):
        term = AGAINST_VERIFIER[name](at) if name != "ce" else cross_entropy(at, labels[rows])
        row[rows] = term.value
        total.add_(term.grad, alpha=weight)
    return total


def _teacher_log_probabilities(teacher: Teacher, rows: slice) -> Tensor:
    """Return the verifier's log-probabilities for a chunk of slots.

    Slots are sorted by base position, so a chunk needs one slice of positions.
    """
    index = teacher.index[rows]
    first, last = int(index[0]), int(index[-1])
    logits = _draft_logits(teacher.states[first : last + 1], teacher.head)
    if teacher.softcap is not None:
        logits = teacher.softcap * torch.tanh(logits / teacher.softcap)
    return logits.log_softmax(-1)[send(index - first, logits.device)]


def _draft_logits(x: Tensor, head: Tensor) -> Tensor:
    logits = matmul_t(pad_rows(x), head)[: len(x)]
    return logits.to(torch.promote_types(x.dtype, torch.float32))


def _chunks(x: Tensor, head: Tensor) -> Iterator[slice]:
    """Yield slices of slots whose logits keep to the byte budget."""
    budget = _CHUNK_BYTES.get(x.device.type, _CHUNK_BYTES_ACCELERATOR)
    step = max(32, budget // (4 * len(head)) // 32 * 32)
    for start in range(0, len(x), step):
        yield slice(start, min(start + step, len(x)))

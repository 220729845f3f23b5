"""log sum exp(x W^T) over a vocabulary, and its gradient, without ever holding the logits.

The gradient of a row's log-partition is the softmax-weighted mean of the head's rows, which is
attention of x over the head with keys and values W. So it is formed like flash attention
(arXiv:2205.14135): tile by tile over the vocabulary, with a running maximum. Every tile of the head
is read once and used twice while it is in cache; the logits of a tile are the only thing that has
a vocabulary axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from speculators.modules.compiling import region
from speculators.modules.gemm import matmul_t, pad_rows

_LOG2E = math.log2(math.e)
_LN2 = math.log(2)
_TILE_BYTES = {"cpu": 4 * 2**20}
_TILE_BYTES_ACCELERATOR = 512 * 2**20
_TILE_ROWS = {"cpu": 512}
_TILE_ROWS_ACCELERATOR = 8192


class Partition(NamedTuple):
    """What a head says of each row. Only the first two carry gradients.

    Attributes:
        log_partition: log sum exp of the logits.
        label_logit: logit of the row's label; 0 for label -1.
        top_token: token of the largest logit, the first one among equals, as `top_tokens` has it.
    """

    log_partition: Float[Tensor, "row"]
    label_logit: Float[Tensor, "row"]
    top_token: Int[Tensor, "row"]


class Expectation(NamedTuple):
    """Moments of a fixed distribution p = softmax(states @ keys.T), one per row.

    Attributes:
        mean: sum p[v] values[v].
        negative_entropy: sum p log p.
    """

    mean: Float[Tensor, "row hidden"]
    negative_entropy: Float[Tensor, "row"]


def partition(
    hidden: Float[Tensor, "row hidden"],
    head: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, "row"],
) -> Partition:
    """Summarise the logits of every row, differentiable with respect to `hidden`.

    Args:
        hidden: input of the head, in the number format of `head`.
        head: frozen.
        labels: token whose logit is wanted, -1 for none.
    """
    x = hidden if torch.is_grad_enabled() else hidden.detach()
    return Partition(*_PartitionFunction.apply(x, head, labels))


def expectation(
    states: Float[Tensor, "row hidden"],
    keys: Float[Tensor, "vocab hidden"],
    values: Float[Tensor, "vocab hidden"],
    softcap: float | None = None,
) -> Expectation:
    """Return moments of softmax(softcap(states @ keys.T)) over `values`, without gradient."""
    parts = []
    with torch.no_grad():
        for _, x in _row_tiles(states):
            running = _Running(x, values.shape[1], softcap)
            for tile in _vocab_tiles(x, keys):
                running.add(matmul_t(x, keys[tile]), values[tile], entropy=True)
            parts.append(running.moments())
    return Expectation(*(torch.cat(part)[: len(states)] for part in zip(*parts, strict=True)))


def top_tokens(
    hidden: Float[Tensor, "row hidden"], head: Float[Tensor, "vocab hidden"]
) -> Int[Tensor, "row"]:
    """Return the most likely token of every row (the first one among equals)."""
    if not len(hidden):
        return torch.zeros(0, dtype=torch.int64, device=hidden.device)
    parts = []
    with torch.no_grad():
        for _, x in _row_tiles(hidden):
            best = torch.full((len(x),), -torch.inf, device=x.device, dtype=_wide(x.dtype))
            token = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            for tile in _vocab_tiles(x, head):
                top, index = top_entries(matmul_t(x, head[tile]))
                token = torch.where(top > best, index + tile.start, token)
                best = torch.maximum(top.to(best.dtype), best)
            parts.append(token)
    return torch.cat(parts)[: len(hidden)]


class _PartitionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        wanted = ctx.needs_input_grad[0]
        logits_of: list[tuple[Tensor, ...]] = []
        means: list[Tensor] = []
        for rows, x in _row_tiles(hidden):
            running = _Running(x, head.shape[1] if wanted else 0)
            pick = _Pick(labels, rows, x)
            for tile in _vocab_tiles(x, head):
                logits = matmul_t(x, head[tile])
                pick.look(logits, tile)
                running.add(logits, head[tile] if wanted else None, start=tile.start)
            logits_of.append((running.log_partition(), pick.found, running.token))
            means.append(running.mean / running.total[:, None])
        out = [torch.cat(part)[: len(hidden)] for part in zip(*logits_of, strict=True)]
        label_logit = torch.where(labels >= 0, out[1], 0)
        if wanted:
            ctx.save_for_backward(torch.cat(means)[: len(hidden)], head, labels)
            ctx.number_format = hidden.dtype
        ctx.mark_non_differentiable(out[2])
        return out[0], label_logit, out[2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        mean, head, labels = ctx.saved_tensors
        of_label = grads[1] * (labels >= 0)
        grad = grads[0][:, None] * mean
        grad.addcmul_(of_label[:, None], head[labels.clamp(min=0)].to(grad.dtype))
        return grad.to(ctx.number_format), None, None


class _Running:
    """Softmax of a tile of rows over the vocabulary tiles seen so far.

    Weights are 2^(logit - top), not normalised; `top` is the largest logit so far, in base 2.
    """

    def __init__(self, x: Tensor, width: int, softcap: float | None = None) -> None:
        wide = _wide(x.dtype)
        self.top = torch.full((len(x),), -1e30, dtype=wide, device=x.device)
        self.token = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.total = torch.zeros_like(self.top)
        self.cross = torch.zeros_like(self.top)
        self.mean = torch.zeros(len(x), width, dtype=wide, device=x.device)
        self.softcap = softcap

    def add(
        self, logits: Tensor, values: Tensor | None, *, start: int = 0, entropy: bool = False
    ) -> None:
        """Take in the vocabulary tile from token `start`; `logits` may be overwritten."""
        kind = logits.dtype if values is None else values.dtype
        seen = _absorb(logits, self.top, self.total, self.softcap, kind, entropy)
        self.token = torch.where(seen.top > self.top, seen.index + start, self.token)
        if seen.cross is not None:
            step = self.top - seen.top
            self.cross = (self.cross + step * self.total) * step.exp2() + seen.cross
        if values is not None:
            part = matmul_t(seen.weights, values.T)
            self.mean.mul_((self.top - seen.top).exp2()[:, None]).add_(part)
        self.top, self.total = seen.top, seen.total

    def log_partition(self) -> Tensor:
        """Return log sum exp, natural."""
        return (self.top + self.total.log2()) * _LN2

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the mean of the values, and sum p log p."""
        negative_entropy = (self.cross / self.total - self.total.log2()) * _LN2
        return self.mean / self.total[:, None], negative_entropy


class _Seen(NamedTuple):
    """What one more tile makes of a running softmax."""

    top: Float[Tensor, "row"]
    total: Float[Tensor, "row"]
    index: Int[Tensor, "row"]
    weights: Float[Tensor, "row tile"]
    cross: Float[Tensor, "row"] | None


@region
def _absorb(
    logits: Tensor,
    top: Tensor,
    total: Tensor,
    softcap: float | None,
    kind: torch.dtype,
    entropy: bool,
) -> _Seen:
    """Weigh a tile against the softmax so far; as one kernel, two passes over memory, not ten.

    `index` is where the tile's largest logit is, `cross` the tile's sum of weight * logit.
    """
    scaled = logits.to(_wide(logits.dtype))
    if softcap is not None:
        scaled = scaled.div_(softcap).tanh_().mul_(softcap)
    scaled = scaled.mul_(_LOG2E)
    here, index = top_entries(scaled)
    higher = torch.maximum(top, here)
    scaled = scaled.sub_(higher[:, None])
    weights = scaled.exp2() if entropy else scaled.exp2_()
    cross = torch.linalg.vecdot(weights, scaled) if entropy else None
    total = total * (top - higher).exp2() + weights.sum(-1)
    return _Seen(higher, total, index, weights.to(kind), cross)


class _Pick:
    """Collects one logit per row while the vocabulary goes by."""

    def __init__(self, ids: Tensor, rows: slice, like: Tensor) -> None:
        self.ids = pad_rows(ids[rows])
        self.found = torch.zeros(len(self.ids), dtype=_wide(like.dtype), device=ids.device)

    def look(self, logits: Tensor, tile: slice) -> None:
        """Take the logits of rows whose token lies in this tile."""
        index = self.ids - tile.start
        inside = (index >= 0) & (index < logits.shape[1])
        here = logits.gather(1, index.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        self.found = torch.where(inside, here, self.found)


def top_entries(
    logits: Float[Tensor, "row vocab"],
) -> tuple[Float[Tensor, "row"], Int[Tensor, "row"]]:
    """Return the largest entry of each row and its index, the first one among equals.

    Finds the value per group of columns first: several times faster on a CPU than `max`, which
    carries the index through the whole row. A compiler fuses `max` with what comes next.
    """
    if torch.compiler.is_compiling():
        return logits.max(-1)
    rows, columns = logits.shape
    width = next((w for w in (64, 32, 16) if columns % w == 0), columns)
    groups = logits.view(rows, -1, width)
    group = groups.amax(-1).argmax(-1)
    chosen = groups.gather(1, group[:, None, None].expand(-1, 1, width))[:, 0]
    top, index = chosen.max(-1)
    return top, group * width + index


def _row_tiles(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of rows and these rows, filled up with zeros to a recurring shape."""
    step = _TILE_ROWS.get(x.device.type, _TILE_ROWS_ACCELERATOR)
    for start in range(0, max(len(x), 1), step):
        part = x[start : start + step]
        yield slice(start, start + len(part)), pad_rows(part)


def _vocab_tiles(x: Tensor, head: Tensor) -> Iterator[slice]:
    """Yield slices of the vocabulary such that a tile of logits keeps to its bytes."""
    budget = _TILE_BYTES.get(x.device.type, _TILE_BYTES_ACCELERATOR)
    widest = max(len(x), head.shape[1])
    step = max(256, budget // (x.element_size() * widest) // 256 * 256)
    for start in range(0, len(head), step):
        yield slice(start, min(start + step, len(head)))


def _wide(number_format: torch.dtype) -> torch.dtype:
    return torch.promote_types(number_format, torch.float32)

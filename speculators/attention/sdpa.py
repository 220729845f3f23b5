"""Exact attention of anchored blocks without the query x key grid: any device, with gradients.

A slot's keys are a slice of the row (shared by a segment of blocks) and the slots of its own
block. Both parts go through one softmax. Scores are formed per segment, so no tensor has the
size `anchor * block` squared, and time follows the number of visible keys.

The softmax works in base 2 (scores carry a factor log2(e)): exp2 is several times faster than
exp on a CPU, the probabilities are the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from speculators.attention.segments import Segment, SegmentPlan
from speculators.modules.parts import part

_LOG2E = math.log2(math.e)
_KEEP_BYTES = 256 * 2**20


@part("attention")
def segment_attention(
    q: Float[Tensor, "anchor query head head_dim"],
    k_context: Float[Tensor, "sequence kv_head head_dim"],
    v_context: Float[Tensor, "sequence kv_head head_dim"],
    k_block: Float[Tensor, "anchor block kv_head head_dim"],
    v_block: Float[Tensor, "anchor block kv_head head_dim"],
    plan: SegmentPlan,
) -> Float[Tensor, "anchor query head head_dim"]:
    """Attend every slot to its context and its block, scale head_dim^-0.5, grouped queries.

    Works in fp32 (or fp64) whatever the inputs; returns the type of `q`.
    """
    blocks, size, heads, dim = q.shape
    kv_heads = k_block.shape[2]
    group = heads // kv_heads
    work = torch.promote_types(q.dtype, torch.float32)
    rows = q.to(work).view(blocks, size, kv_heads, group, dim).permute(2, 0, 1, 3, 4)
    inputs = (
        rows.reshape(kv_heads, blocks, size * group, dim),
        *(t.to(work).transpose(0, 1).contiguous() for t in (k_context, v_context)),
        *(t.to(work).permute(2, 0, 1, 3).contiguous() for t in (k_block, v_block)),
    )
    if not torch.is_grad_enabled():
        inputs = tuple(t.detach() for t in inputs)
    with torch.autocast(q.device.type, enabled=False):
        out = _SegmentAttention.apply(*inputs, plan)
    out = out.view(kv_heads, blocks, size, group, dim).permute(1, 2, 0, 3, 4)
    return out.reshape(blocks, size, heads, dim).to(q.dtype)


class _SegmentAttention(torch.autograd.Function):
    """Rows are `kv_head anchor row head_dim` with row = slot * group + query head of the group.

    Notation of the body: e = 2^(score - max), unnormalised; p = e / total.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, kc: Tensor, vc: Tensor, kb: Tensor, vb: Tensor, plan: SegmentPlan
    ) -> Tensor:
        scaled = q * (q.shape[-1] ** -0.5 * _LOG2E)
        own = scaled @ kb.transpose(-1, -2)
        _add_own_bias(own, plan)
        top = own.amax(-1)
        total, out = torch.zeros_like(top), torch.zeros_like(q)
        kept: list[Tensor] = []
        keep = any(ctx.needs_input_grad) and _score_bytes(q, plan) <= _KEEP_BYTES
        for s in plan.segments:
            scores = _scores(scaled, kc, s)
            rows = scores.shape[1]
            peak = torch.maximum(scores.amax(-1), top[:, s.first : s.last].reshape(-1, rows))
            e = scores.sub_(peak[..., None]).exp2_()
            top[:, s.first : s.last] = peak.view_as(top[:, s.first : s.last])
            total[:, s.first : s.last] = e.sum(-1).view_as(top[:, s.first : s.last])
            part = torch.bmm(e, vc[:, s.low : s.high])
            out[:, s.first : s.last] = part.view_as(out[:, s.first : s.last])
            if keep:
                kept.append(e)
        own.sub_(top[..., None]).exp2_()
        inverse = (total + own.sum(-1)).reciprocal_()
        out.add_(own @ vb).mul_(inverse[..., None])
        ctx.save_for_backward(q, kc, vc, kb, vb, out, own, top, inverse, *kept)
        ctx.plan, ctx.keep = plan, keep
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, kc, vc, kb, vb, out, own, top, inverse, *kept = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        scaled = None if ctx.keep else q * (scale * _LOG2E)
        # With the gradient divided by `total`, e takes the place of p everywhere below.
        grad = grads[0] * inverse[..., None]
        mean = (grad * out).sum(-1)
        ds = (grad @ vb.transpose(-1, -2)).sub_(mean[..., None]).mul_(own)
        grad_vb = own.transpose(-1, -2) @ grad
        grad_q, grad_kb = ds @ kb, ds.transpose(-1, -2) @ q
        grad_kc, grad_vc = torch.zeros_like(kc), torch.zeros_like(vc)
        for i, s in enumerate(ctx.plan.segments):
            g = _rows(grad, s)
            if scaled is None:
                e = kept[i]
            else:
                e = _scores(scaled, kc, s).sub_(_rows(top[..., None], s)).exp2_()
            grad_vc[:, s.low : s.high].baddbmm_(e.transpose(1, 2), g)
            ds = torch.bmm(g, vc[:, s.low : s.high].transpose(1, 2))
            ds.sub_(_rows(mean[..., None], s)).mul_(e)
            part = torch.bmm(ds, kc[:, s.low : s.high])
            grad_q[:, s.first : s.last] += part.view_as(grad_q[:, s.first : s.last])
            grad_kc[:, s.low : s.high].baddbmm_(ds.transpose(1, 2), _rows(q, s))
        return (
            grad_q.mul_(scale), grad_kc.mul_(scale), grad_vc, grad_kb.mul_(scale), grad_vb, None
        )  # fmt: skip


def _rows(x: Tensor, s: Segment) -> Tensor:
    """Return the segment's rows of `kv_head anchor row column` as `kv_head row column`."""
    return x[:, s.first : s.last].reshape(x.shape[0], -1, x.shape[-1])


def _scores(scaled: Tensor, kc: Tensor, s: Segment) -> Tensor:
    """Return base-2 scores of a segment against its context, `kv_head row column`, masked."""
    scores = torch.bmm(_rows(scaled, s), kc[:, s.low : s.high].transpose(1, 2))
    for edge in s.edges:
        blocks, slots, _ = edge.bias.shape
        grid = scores.view(scores.shape[0], blocks, slots, -1, scores.shape[-1])
        grid[..., edge.start : edge.stop] += edge.bias[:, :, None]
    return scores


def _add_own_bias(own: Tensor, plan: SegmentPlan) -> None:
    """Mask scores between slots of one block, `kv_head anchor row block`, in place."""
    if plan.own_bias is not None:
        queries, size = plan.own_bias.shape
        own.view(*own.shape[:2], queries, -1, size).add_(plan.own_bias[:, None])


def _score_bytes(q: Tensor, plan: SegmentPlan) -> int:
    rows = sum((s.last - s.first) * (s.high - s.low) for s in plan.segments)
    return q.shape[0] * q.shape[2] * rows * q.element_size()

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attention.packings import (
    RULES,
    dense_attention,
    oracle_mask,
    random_inputs,
    random_layout,
)
from speculators.attention import sdpa
from speculators.attention.layout import BlockLayout, MaskRule
from speculators.attention.masks import dense_mask
from speculators.attention.sdpa import segment_attention
from speculators.attention.segments import SegmentPlan, plan_segments


@pytest.mark.parametrize("keep_bytes", [0, 2**40], ids=["recomputed", "kept"])
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_values_and_gradients_equal_dense(
    seed: int, rule: MaskRule, keep_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdpa, "_KEEP_BYTES", keep_bytes)
    layout = random_layout(seed, max_tokens=150)
    inputs = random_inputs(layout, heads=6, kv_heads=2, dim=8, dtype=torch.float64)
    out = segment_attention(*inputs, plan_segments(layout, rule))
    reference = dense_attention(*inputs, oracle_mask(layout, rule))
    torch.testing.assert_close(out, reference)
    grad = torch.randn_like(reference)
    got = torch.autograd.grad(out, inputs, grad)
    wanted = torch.autograd.grad(reference, inputs, grad)
    torch.testing.assert_close(got, wanted)


def test_gradcheck() -> None:
    index = torch.arange(9)
    layout = BlockLayout(torch.tensor([0, 3, 4, 7]), 4, index // 5, index % 5, 3)
    inputs = random_inputs(layout, heads=2, kv_heads=1, dim=4, dtype=torch.float64)
    for rule in (MaskRule(), MaskRule(window=3, causal=True)):
        plan = plan_segments(layout, rule)

        def attend(
            q: Tensor, kc: Tensor, vc: Tensor, kb: Tensor, vb: Tensor, plan: SegmentPlan = plan
        ) -> Tensor:
            return segment_attention(q, kc, vc, kb, vb, plan)

        assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_float32_with_large_scores(scale: float) -> None:
    layout = random_layout(3, max_tokens=150)
    inputs = random_inputs(layout, heads=4, kv_heads=4, dim=16, dtype=torch.float32)
    q = inputs[0] * scale
    out = segment_attention(q, *inputs[1:], plan_segments(layout, MaskRule()))
    mask = dense_mask(layout, MaskRule())
    q, kc, vc, kb, vb = (x.double() for x in (q, *inputs[1:]))
    torch.testing.assert_close(
        out.double(), dense_attention(q, kc, vc, kb, vb, mask), atol=2e-5, rtol=2e-5
    )


def test_bfloat16_comes_back_as_bfloat16_under_autocast() -> None:
    layout = random_layout(5)
    inputs = random_inputs(layout, 4, 2, 8, torch.float32)
    q, kc, vc, kb, vb = (x.bfloat16() for x in inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out = segment_attention(q, kc, vc, kb, vb, plan_segments(layout, MaskRule()))
    q, kc, vc, kb, vb = (x.double() for x in (q, kc, vc, kb, vb))
    reference = dense_attention(q, kc, vc, kb, vb, dense_mask(layout, MaskRule()))
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.double(), reference, atol=1e-2, rtol=1e-2)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of elements any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def test_no_grid_is_ever_made() -> None:
    """Twice the blocks: the largest tensor stays, though the grid grows fourfold."""
    largest = []
    for blocks in (64, 128):
        index = torch.arange(512)
        anchors = torch.arange(blocks) * (512 // blocks)
        layout = BlockLayout(anchors, blocks, index * 0, index, 8)
        inputs = random_inputs(layout, heads=2, kv_heads=1, dim=4, dtype=torch.float32)
        plan = plan_segments(layout, MaskRule())
        with LargestTensor() as mode:
            segment_attention(*inputs, plan).sum().backward()
        largest.append(mode.elements)
        assert mode.elements < layout.num_queries * (512 + layout.num_queries) // 4
    assert largest[1] <= 2.2 * largest[0]


def test_segments_stay_inside_documents_and_cover_all_blocks_with_context() -> None:
    layout = random_layout(11, max_tokens=400)
    plan = plan_segments(layout, MaskRule())
    documents = layout.block_documents()
    covered = set()
    for s in plan.segments:
        assert len(documents[s.first : s.last].unique()) == 1
        covered |= set(range(s.first, s.last))
    first, end = layout.context_bounds(MaskRule())
    assert covered == set((first[:, 0] < end).nonzero().flatten().tolist())

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask

from attention.packings import RULES, random_inputs, random_layout
from speculators.attention import flex
from speculators.attention.backend import choose_backend, prepare_attention
from speculators.attention.layout import MaskRule
from speculators.config.schema import AttentionBackend
from speculators.errors import ConfigError


@pytest.fixture
def _flex_without_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run FlexAttention's reference directly: tracing it costs seconds per shape."""
    module = "torch.nn.attention.flex_attention"
    monkeypatch.setattr(f"{module}._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.mark.usefixtures("_flex_without_tracing")
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("seed", [1])
def test_flex_equals_sdpa(seed: int, rule: MaskRule) -> None:
    _compare(seed, rule)


@pytest.mark.usefixtures("_flex_without_tracing")
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rows_with_any_number_of_blocks_are_one_shape_to_the_kernel(
    rule: MaskRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, kernel = set(), flex._kernel("cpu")

    def noting(*tensors: torch.Tensor, block_mask: BlockMask, **options: Any) -> torch.Tensor:
        parts = (*tensors, block_mask.kv_indices, block_mask.full_kv_indices)
        shapes.add((block_mask.seq_lengths, *(x.shape for x in parts if x is not None)))
        return kernel(*tensors, block_mask=block_mask, **options)

    monkeypatch.setattr(flex, "_kernel", lambda _: noting)
    whole = random_layout(4, max_tokens=300)
    for count in (0, 1, whole.num_valid // 2, whole.num_valid):
        anchors = torch.cat([whole.anchors[:count], torch.zeros(1, dtype=torch.int64)])
        some = replace(whole, anchors=anchors, num_valid=count, most_blocks=whole.num_blocks + 3)
        inputs = random_inputs(some, heads=4, kv_heads=2, dim=16, dtype=torch.float32)
        out = []
        for backend in (AttentionBackend.flex, AttentionBackend.sdpa):
            attend = prepare_attention(some, rule, backend, "cpu", gradients=False)
            with torch.no_grad():
                out.append(attend(*inputs))
        torch.testing.assert_close(*out, atol=1e-5, rtol=1e-5)
    assert whole.num_valid > 3
    assert len(shapes) == 1


@pytest.mark.usefixtures("_flex_without_tracing")
def test_heads_too_narrow_for_a_gpu_are_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels refuse heads of less than 16; small models have some."""
    widths, kernel = set(), flex._kernel("cpu")

    def noting(*tensors: torch.Tensor, **options: Any) -> torch.Tensor:
        widths.update(x.shape[-1] for x in tensors)
        return kernel(*tensors, **options)

    monkeypatch.setattr(flex, "_kernel", lambda _: noting)
    _compare(1, MaskRule(), dim=8)
    assert widths == {16}


@pytest.mark.slow
def test_traced_flex_equals_sdpa() -> None:
    _compare(1, MaskRule(window=4, causal=True))


def _compare(seed: int, rule: MaskRule, dim: int = 16) -> None:
    layout = random_layout(seed, max_tokens=300)
    inputs = random_inputs(layout, heads=4, kv_heads=2, dim=dim, dtype=torch.float32)
    q, kc, vc, kb, vb = (x.detach() for x in inputs)
    out = []
    with torch.no_grad():
        for backend in (AttentionBackend.flex, AttentionBackend.sdpa):
            attend = prepare_attention(layout, rule, backend, "cpu", gradients=False)
            out.append(attend(q, kc, vc, kb, vb))
    torch.testing.assert_close(out[0], out[1], atol=1e-5, rtol=1e-5)


def test_auto_goes_by_device() -> None:
    auto = AttentionBackend.auto
    assert choose_backend(auto, "cpu", gradients=True) is AttentionBackend.sdpa
    assert choose_backend(auto, "cuda:0", gradients=True) is AttentionBackend.flex


def test_flex_with_gradients_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_backend(AttentionBackend.flex, "cpu", gradients=True)
    assert str(caught.value) == (
        "attention=flex: FlexAttention has no backward pass on a CPU: "
        "use attention=sdpa (same mask, exact) or attention=auto"
    )

from __future__ import annotations

import pytest
import torch

from speculators.modules import gemm
from speculators.modules.gemm import Linear, matmul_t, pad_rows


@pytest.mark.parametrize("rows", [1, 31, 32, 96])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_matmul_t_on_views(rows: int, dtype: torch.dtype) -> None:
    a = torch.randn(rows, 100).to(dtype)[:, 3:67]
    b = torch.randn(64, 48).to(dtype).T
    tolerance = 0.1 if dtype is torch.bfloat16 else 1e-4
    torch.testing.assert_close(matmul_t(a, b), a @ b.T, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("shape", [(32, 64), (4, 8, 64), (7, 64), (0, 64)])
def test_linear_equals_torch(shape: tuple[int, ...]) -> None:
    ours, theirs = Linear(64, 96), torch.nn.Linear(64, 96, bias=False)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape)
    results = []
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        grads = torch.autograd.grad(out, (leaf, module.weight), torch.ones_like(out))
        results.append((out.detach(), *grads))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


def test_linear_follows_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(32, 32)(torch.randn(32, 32)).dtype is torch.bfloat16


def test_without_onednn_results_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(64, 64), torch.randn(96, 64)
    fast = matmul_t(a, b)
    monkeypatch.setattr(gemm, "onednn_available", lambda: False)
    torch.testing.assert_close(matmul_t(a, b), fast, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("rows", "padded"), [(0, 32), (1, 32), (32, 32), (33, 64)])
def test_pad_rows(rows: int, padded: int) -> None:
    x = torch.ones(rows, 3)
    out = pad_rows(x)
    assert out.shape == (padded, 3)
    assert torch.equal(out[:rows], x)
    assert not out[rows:].any()

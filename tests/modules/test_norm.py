from __future__ import annotations

import torch

from speculators.modules.norm import RMSNorm, rms_norm


def test_gradient_in_closed_form() -> None:
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, weight))


def test_equals_torch() -> None:
    x, norm = torch.randn(5, 8), RMSNorm(8, 1e-6)
    torch.nn.init.normal_(norm.weight)
    reference = torch.nn.functional.rms_norm(x, (8,), norm.weight, 1e-6)
    torch.testing.assert_close(norm(x), reference)


def test_half_precision_is_computed_in_fp32_and_given_back() -> None:
    x, norm = (torch.randn(64, 256) * 30).bfloat16(), RMSNorm(256, 1e-6)
    reference = torch.nn.functional.rms_norm(x.double(), (256,), norm.weight.double(), 1e-6)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = norm(x)
        assert out.dtype is torch.bfloat16
        assert (out.double() - reference).abs().max() <= 2**-8 * reference.abs().max()

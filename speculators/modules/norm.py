"""Root-mean-square norm, in fp32 whatever the input."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) * weight over the last axis.

    Args:
        size: length of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Normalise; computed in fp32 (fp64 stays), returned in the type of `x`."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        weight = self.weight.to(wide.dtype)
        by_hand = x.device.type == "cpu" and not torch.compiler.is_compiling()
        if by_hand and torch.is_grad_enabled():
            return rms_norm(wide, weight, self.eps).to(x.dtype)
        return nn.functional.rms_norm(wide, weight.shape, weight, self.eps).to(x.dtype)


def rms_norm(
    x: Float[Tensor, "*batch size"], weight: Float[Tensor, "size"], eps: float
) -> Float[Tensor, "*batch size"]:
    """RMS norm with its gradient in closed form: half the passes over memory of autograd's."""
    return _RMSNormFunction.apply(x, weight, eps)


class _RMSNormFunction(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vecdot(x, x).div_(x.shape[-1])
        scale = mean_square.add_(eps).rsqrt_().unsqueeze(-1)
        unit = x * scale
        ctx.save_for_backward(unit, weight, scale)
        return unit * weight

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        unit, weight, scale = ctx.saved_tensors
        grad = grads[0]
        grad_weight = (grad * unit).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        inner = grad * weight
        mean = torch.linalg.vecdot(inner, unit).div_(unit.shape[-1]).unsqueeze(-1)
        return torch.addcmul(inner, unit, mean, value=-1).mul_(scale), grad_weight, None

"""Matrix products of the drafter: oneDNN on a CPU where it pays, torch's own otherwise.

torch sends fp32 products to MKL, which on CPUs of other makers than its own runs at less than half
the speed of oneDNN (measured on one AMD EPYC core: 92 against 207 GFLOP/s at 448 x 512 x 2048).
oneDNN compiles a kernel for every new shape (3 to 14 ms), so it gets only shapes that recur:
callers round row counts up to `ROW_MULTIPLE`, everything else stays with MKL.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

ROW_MULTIPLE = 32
"""Row counts that are multiples of this take the fast path."""


def matmul_t(a: Float[Tensor, "row inner"], b: Float[Tensor, "column inner"]) -> Tensor:
    """Return a @ b.T, `row column`. Views (transposed, sliced) are taken as they are."""
    rows, inner = a.shape
    if (
        rows % ROW_MULTIPLE == 0
        and inner % ROW_MULTIPLE == 0
        and rows * inner > 0
        and a.dtype == b.dtype == torch.float32
        and a.device.type == b.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and onednn_available()
    ):
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return a @ b.T


def pad_rows(x: Shaped[Tensor, "row *rest"]) -> Shaped[Tensor, "padded *rest"]:
    """Fill up with zero rows to the next multiple of `ROW_MULTIPLE`; at least one multiple."""
    missing = -len(x) % ROW_MULTIPLE if len(x) else ROW_MULTIPLE
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) if missing else x


@cache
def onednn_available() -> bool:
    """Whether this build of torch offers oneDNN's product of dense matrices, and it is right."""
    try:
        a = torch.arange(64 * 32, dtype=torch.float32).view(64, 32) / 2048
        b = a[:48].flip(0)
        out = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        return bool(torch.allclose(out, a @ b.T, rtol=1e-5, atol=1e-5))
    except (AttributeError, RuntimeError, TypeError):
        return False


class Linear(torch.nn.Linear):
    """Linear map without bias: `torch.nn.Linear` in names and results, `matmul_t` in speed."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return input @ weight.T; under autocast in autocast's number format."""
        plain = input.device.type != "cpu" or torch.compiler.is_compiling()
        if plain or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        rows = input.reshape(-1, input.shape[-1]).to(self.weight.dtype)
        # While decoding, the bookkeeping of a Function would cost more than the product.
        product = _LinearFunction.apply if torch.is_grad_enabled() else matmul_t
        return product(rows, self.weight).view(*input.shape[:-1], self.out_features)


class _LinearFunction(torch.autograd.Function):
    """y = x W^T, whose three products all go through `matmul_t`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return matmul_t(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grads[0]
        grad_x = matmul_t(grad, weight.T) if ctx.needs_input_grad[0] else None
        grad_weight = matmul_t(grad.T, x.T) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight

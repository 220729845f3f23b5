"""Gated MLP of Llama-like decoder layers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from speculators.modules.gemm import Linear


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv:2002.05202), weight names of the published checkpoints.

    Args:
        hidden_size: width in and out.
        intermediate_size: width in between.
    """

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Apply the MLP to every row."""
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))

"""Decoder layers of Eagle-3; the first one reads embedding and state side by side.

Eagle-3 specification, sections 2 and 3. Rows of the base see each other causally; who else sees
whom is said by the attention that is passed in.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from speculators.attention.backend import BlockAttention
from speculators.modules.compiling import region
from speculators.modules.decoder import InjectedAttention, KeyValue, LayerSizes
from speculators.modules.mlp import SwiGLU
from speculators.modules.norm import RMSNorm
from speculators.modules.rotary import Rotation


class ChainLayer(nn.Module):
    """Pre-norm attention and MLP.

    Args:
        sizes: widths of the layer.
        fused: read [embedding; state] (the first layer), or the state alone.
        head_norms: norm queries and keys.
        norm_before_residual: a fused layer's residual starts from the normed state.
    """

    def __init__(
        self, sizes: LayerSizes, *, fused: bool, head_norms: bool, norm_before_residual: bool
    ) -> None:
        super().__init__()
        hidden = sizes.hidden_size
        self.norm_before_residual = norm_before_residual
        self.input_layernorm = RMSNorm(hidden, sizes.rms_norm_eps)
        self.hidden_norm = RMSNorm(hidden, sizes.rms_norm_eps) if fused else None
        width = 2 * hidden if fused else hidden
        self.self_attn = InjectedAttention(sizes, input_size=width, head_norms=head_norms)
        self.post_attention_layernorm = RMSNorm(hidden, sizes.rms_norm_eps)
        self.mlp = SwiGLU(hidden, sizes.intermediate_size)

    @region
    def enter(
        self,
        state: Float[Tensor, "*batch hidden"],
        embedding: Float[Tensor, "*batch hidden"],
    ) -> tuple[Float[Tensor, "*batch width"], Float[Tensor, "*batch hidden"]]:
        """Return what is projected, and the residual it is added to."""
        if self.hidden_norm is None:
            return self.input_layernorm(state), state
        normed = self.hidden_norm(state)
        u = torch.cat([self.input_layernorm(embedding), normed], -1)
        return u, normed if self.norm_before_residual else state

    def keys(self, u: Float[Tensor, "*batch width"], by: Rotation) -> KeyValue:
        """Return keys and values of rows."""
        return self.self_attn.context(u, by)

    def forward(
        self,
        u: Float[Tensor, "row query width"],
        residual: Float[Tensor, "row query hidden"],
        by: Rotation,
        context: KeyValue,
        own: KeyValue,
        attend: BlockAttention,
    ) -> Float[Tensor, "row query hidden"]:
        """Return the state after the layer.

        Args:
            u: projected input of the rows that ask.
            residual: what attention and MLP are added to.
            by: rotation of every query, `row query half`.
            context: keys and values of the base, `token kv_head head_dim`.
            own: those of each row's own slots, `row slot kv_head head_dim`.
            attend: attention under this layer's mask.
        """
        q = self.self_attn.queries(u, by)
        mixed = attend(q, context.keys, context.values, own.keys, own.values)
        return self._finish(mixed.flatten(-2), residual)

    @region
    def _finish(self, mixed: Tensor, residual: Tensor) -> Tensor:
        h = residual + self.self_attn.o_proj(mixed)
        return h + self.mlp(self.post_attention_layernorm(h))

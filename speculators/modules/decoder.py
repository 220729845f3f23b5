"""Decoder layer whose slots also attend to the verifier's states of earlier tokens (KV injection).

The context C (verifier states, fused) enters each layer as keys and values only: through the same
projections as the slots, but not through the input norm, and it never asks (DFlash specification,
section 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from speculators.attention.backend import BlockAttention
from speculators.config.schema import DraftLayersConfig
from speculators.modules.compiling import region
from speculators.modules.gemm import Linear
from speculators.modules.mlp import SwiGLU
from speculators.modules.norm import RMSNorm
from speculators.modules.rotary import Rotation, rotate
from speculators.verifier.spec import VerifierSpec


@dataclass(frozen=True)
class LayerSizes:
    """Widths of a decoder layer.

    Attributes:
        hidden_size: width of the residual stream [H].
        intermediate_size: width of the MLP [I].
        num_attention_heads: query heads [nq].
        num_key_value_heads: key/value heads [nkv].
        head_dim: head size [D].
        rms_norm_eps: epsilon of every norm.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float

    @classmethod
    def of(cls, config: DraftLayersConfig, spec: VerifierSpec) -> LayerSizes:
        """Return the widths of a draft layer: as configured, else the verifier's."""
        return cls(
            spec.hidden_size,
            config.intermediate_size or spec.intermediate_size,
            config.num_attention_heads or spec.num_attention_heads,
            config.num_key_value_heads or spec.num_key_value_heads,
            config.head_dim or spec.head_dim,
            spec.rms_norm_eps,
        )


class KeyValue(NamedTuple):
    """Keys (normed and rotated) and values of tokens or slots in one layer."""

    keys: Float[Tensor, "*batch kv_head head_dim"]
    values: Float[Tensor, "*batch kv_head head_dim"]


@dataclass(frozen=True)
class BlockStates:
    """Stream of all slots; before the first layer most of them are equal and stored once.

    All slots but the first enter as the same mask embedding, so the first layer projects
    `anchor + 1` rows instead of `anchor * block`.

    Attributes:
        rows: `anchor block hidden`; or, if `block_size` is set, `anchor + 1` rows: slot 0 of
            every block, then the one that all other slots share.
        block_size: slots per block when rows are shared.
    """

    rows: Float[Tensor, "..."]
    block_size: int | None = None

    def spread(self, per_row: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return what was computed per row for every slot, `anchor block ...`."""
        if self.block_size is None:
            return per_row
        anchors, shared = per_row[:-1, None], per_row[-1:, None]
        others = shared.expand(len(anchors), self.block_size - 1, *shared.shape[2:])
        return torch.cat([anchors, others], 1)


class InjectedAttention(nn.Module):
    """Projections and head norms of attention; who attends to whom is decided outside.

    Args:
        sizes: widths of the layer.
        input_size: width of what is projected; None: the hidden size.
        head_norms: norm queries and keys (Qwen3), or not (Llama).
    """

    def __init__(
        self, sizes: LayerSizes, *, input_size: int | None = None, head_norms: bool = True
    ) -> None:
        super().__init__()
        width = input_size or sizes.hidden_size
        self.head_dim = sizes.head_dim
        q_size = sizes.num_attention_heads * sizes.head_dim
        kv_size = sizes.num_key_value_heads * sizes.head_dim
        self.q_proj = Linear(width, q_size)
        self.k_proj = Linear(width, kv_size)
        self.v_proj = Linear(width, kv_size)
        self.o_proj = Linear(q_size, sizes.hidden_size)
        self.q_norm, self.k_norm = (
            RMSNorm(sizes.head_dim, sizes.rms_norm_eps) if head_norms else nn.Identity()
            for _ in range(2)
        )

    def queries(
        self, u: Float[Tensor, "*batch width"], by: Rotation
    ) -> Float[Tensor, "*batch head head_dim"]:
        """Return queries, normed and rotated."""
        return rotate(self.q_norm(self._heads(self.q_proj(u))), by)

    @region
    def context(self, c: Float[Tensor, "*batch width"], by: Rotation) -> KeyValue:
        """Return keys and values, normed and rotated."""
        keys = self.k_norm(self._heads(self.k_proj(c)))
        return KeyValue(rotate(keys, by), self._heads(self.v_proj(c)))

    def project(
        self, u: Float[Tensor, "*batch hidden"]
    ) -> tuple[
        Float[Tensor, "*batch head head_dim"],
        Float[Tensor, "*batch kv_head head_dim"],
        Float[Tensor, "*batch kv_head head_dim"],
    ]:
        """Return queries, keys and values of slots, normed but not yet rotated."""
        return (
            self.q_norm(self._heads(self.q_proj(u))),
            self.k_norm(self._heads(self.k_proj(u))),
            self._heads(self.v_proj(u)),
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP over the slots of blocks, with injected context.

    Args:
        sizes: widths of the layer.
    """

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        self.self_attn = InjectedAttention(sizes)
        self.post_attention_layernorm = RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        self.mlp = SwiGLU(sizes.hidden_size, sizes.intermediate_size)

    def forward(
        self,
        x: BlockStates,
        context: KeyValue,
        by: Rotation,
        attend: BlockAttention,
        keep: Int[Tensor, "slot"] | None = None,
    ) -> Float[Tensor, "..."]:
        """Return the stream after the layer, `anchor block hidden`.

        Args:
            x: stream before the layer.
            context: this layer's keys and values of the row.
            by: rotation of every slot, `anchor block half`.
            attend: attention under this layer's mask.
            keep: flat slots to go on with (last layer); then the result is `slot hidden`.
        """
        q, k, v = self._project(x, by)
        mixed = attend(q, context.keys, context.values, k, v)
        mixed, stream = mixed.flatten(-2), x.spread(x.rows)
        if keep is not None:
            mixed = mixed.flatten(0, 1).index_select(0, keep)
            stream = stream.flatten(0, 1).index_select(0, keep)
        return self._finish(mixed, stream)

    @region
    def _project(self, x: BlockStates, by: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (x.spread(t) for t in self.self_attn.project(self.input_layernorm(x.rows)))
        return rotate(q, by), rotate(k, by), v

    @region
    def _finish(self, mixed: Tensor, stream: Tensor) -> Tensor:
        h = stream + self.self_attn.o_proj(mixed)
        return h + self.mlp(self.post_attention_layernorm(h))

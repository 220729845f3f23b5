"""One interface to attention of anchored blocks, whoever computes it."""

from __future__ import annotations

from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from speculators.attention.flex import flex_block_attention
from speculators.attention.layout import BlockLayout, MaskRule
from speculators.attention.sdpa import segment_attention
from speculators.attention.segments import plan_segments
from speculators.attention.structure import block_mask
from speculators.config.schema import AttentionBackend
from speculators.errors import ConfigError
from speculators.modules.parts import part


@runtime_checkable
class BlockAttention(Protocol):
    """Attention of one packed batch under one mask rule; prepared once, used by many layers."""

    def __call__(
        self,
        q: Float[Tensor, "anchor query head head_dim"],
        k_context: Float[Tensor, "sequence kv_head head_dim"],
        v_context: Float[Tensor, "sequence kv_head head_dim"],
        k_block: Float[Tensor, "anchor block kv_head head_dim"],
        v_block: Float[Tensor, "anchor block kv_head head_dim"],
    ) -> Float[Tensor, "anchor query head head_dim"]:
        """Attend every slot to its context and the slots of its block."""
        ...


def choose_backend(
    backend: AttentionBackend, device: torch.device | str, *, gradients: bool
) -> AttentionBackend:
    """Return who computes attention on `device`; auto is flex on CUDA and sdpa elsewhere.

    Raises:
        ConfigError: flex on a CPU with gradients, which FlexAttention cannot do.
    """
    kind = torch.device(device).type
    if backend is AttentionBackend.auto:
        return AttentionBackend.flex if kind == "cuda" else AttentionBackend.sdpa
    if backend is AttentionBackend.flex and kind == "cpu" and gradients:
        raise ConfigError(
            "attention=flex: FlexAttention has no backward pass on a CPU: "
            "use attention=sdpa (same mask, exact) or attention=auto"
        )
    return backend


@part("mask")
def prepare_attention(
    layout: BlockLayout,
    rule: MaskRule,
    backend: AttentionBackend,
    device: torch.device | str,
    *,
    gradients: bool,
) -> BlockAttention:
    """Do what depends on the batch alone, so that layers only compute.

    Args:
        layout: blocks of the packed row, on the host.
        rule: window and causality of the layers that will call.
        backend: configured choice.
        device: where the layers compute.
        gradients: whether a backward pass follows.

    Raises:
        ConfigError: as `choose_backend`.
    """
    if choose_backend(backend, device, gradients=gradients) is AttentionBackend.flex:
        return partial(flex_block_attention, mask=block_mask(layout.at_most(), rule, device))
    return partial(segment_attention, plan=plan_segments(layout, rule, device))

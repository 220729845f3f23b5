"""FlexAttention backend: compiled kernels on a GPU, the eager reference (forward) on a CPU."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from speculators.modules.compiling import compile_counted
from speculators.modules.parts import part

_MOST_SHAPES = 128
_NARROWEST = 16
"""A GPU's matrix units take no narrower heads."""


@part("attention")
def flex_block_attention(
    q: Float[Tensor, "anchor query head head_dim"],
    k_context: Float[Tensor, "sequence kv_head head_dim"],
    v_context: Float[Tensor, "sequence kv_head head_dim"],
    k_block: Float[Tensor, "anchor block kv_head head_dim"],
    v_block: Float[Tensor, "anchor block kv_head head_dim"],
    mask: BlockMask,
) -> Float[Tensor, "anchor query head head_dim"]:
    """Attend every slot to its context and its block, scale head_dim^-0.5, grouped queries.

    The mask may be of more blocks than there are: the kernel is compiled for its shape alone, and a
    block that is not there sees nothing but itself, so it costs next to nothing.
    """
    queries, keys = mask.seq_lengths
    out = _kernel(q.device.type)(
        _heads_first(q.flatten(0, 1), queries),
        _heads_first(torch.cat([k_context, k_block.flatten(0, 1)]), keys),
        _heads_first(torch.cat([v_context, v_block.flatten(0, 1)]), keys),
        block_mask=mask,
        scale=q.shape[-1] ** -0.5,
        enable_gqa=q.shape[2] != k_context.shape[1],
    )
    out = out[0].transpose(0, 1)[: q.shape[0] * q.shape[1], :, : q.shape[-1]]
    return out.reshape(q.shape)


def _heads_first(x: Tensor, length: int) -> Tensor:
    """Fill up with zeros, and bring heads before tokens."""
    if length > x.shape[0]:
        x = torch.cat([x, x.new_zeros(length - x.shape[0], *x.shape[1:])])
    if x.shape[-1] < _NARROWEST:  # zeros change no score
        x = torch.nn.functional.pad(x, (0, _NARROWEST - x.shape[-1]))
    return x.transpose(0, 1)[None]


@cache
def _kernel(device_type: str) -> Callable[..., Tensor]:
    """Return the attention function of a device; compiled once per process and shape."""
    if device_type != "cpu":
        # Past its limit torch would fall back, silently, to a form that builds the whole grid.
        # Rules of layers, steps of chains and passes without gradient multiply.
        dynamo: Any = importlib.import_module("torch._dynamo.config")
        dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_SHAPES)
        return compile_counted(flex_attention, dynamic=False)
    return _eager


def _eager(*args: Tensor, **options: object) -> Tensor:
    with warnings.catch_warnings():
        # The eager form is wanted here: it is the reference for the compiled kernels.
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return flex_attention(*args, **options)  # pyright: ignore

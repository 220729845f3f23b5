"""Hidden states in eight bits: half the space of bfloat16, at a loss docs/performance.md measures.

E4M3 holds magnitudes from 2**-9 to 448. Every state has a scale of its own, so that its largest
value becomes 448: the streams of one token differ by factors of a thousand between layers, and
under one scale for the whole token the early layers would round to zero.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from speculators.config.schema.hidden_states import StoreDtype

FLOAT8 = "float8_e4m3fn"
"""Name of the number format, as stores have it."""

RESTORED = torch.bfloat16
"""Number format of what is read back: more than holds what eight bits kept."""

_LARGEST = 448.0


def stored_dtype(wanted: StoreDtype, computed: str) -> str:
    """Return the number format of a store that keeps states computed in `computed`."""
    return computed if wanted is StoreDtype.same else wanted.value


def quantise(
    states: Float[Tensor, "token layer hidden"],
) -> tuple[Tensor, Float[Tensor, "token layer 1"]]:
    """Return the eight-bit values and their scales (fp32, largest magnitude / 448)."""
    values = states.float()
    scale = values.abs().amax(-1, keepdim=True) / _LARGEST
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (values / scale).to(torch.float8_e4m3fn), scale


def restore(
    codes: Float[Tensor, "token layer hidden"], scale: Float[Tensor, "token #layer 1"]
) -> Float[Tensor, "token layer hidden"]:
    """Return the states; a scale for a whole token is taken too."""
    return (codes.float() * scale).to(RESTORED)


def scale_problem(codes: Tensor, scale: Tensor) -> str | None:
    """Return what is wrong with stored scales, or None."""
    if codes.ndim != 3:
        return f"states have shape {list(codes.shape)}, expected three axes"
    shapes = ((*codes.shape[:2], 1), (codes.shape[0], 1, 1))
    if scale.dtype != torch.float32 or tuple(scale.shape) not in shapes:
        return f"scales are {scale.dtype} {list(scale.shape)}, expected float32 {list(shapes[0])}"
    return None

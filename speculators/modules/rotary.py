"""Rotary position embedding (arXiv:2104.09864), half-rotation layout, as the serving engine does.

Only the kinds that draft code of the serving engine is known to compute in the same way are
offered: a difference between training and serving costs all acceptance, silently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROPE_TYPES = ("default", "linear", "llama3")
"""Values of `rope_type` that drafters compute."""

_KEYS = {
    "default": ("rope_theta",),
    "linear": ("rope_theta", "factor"),
    "llama3": (
        "rope_theta",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


@dataclass(frozen=True)
class Rotation:
    """Cosine and sine of every position, to be applied to any number of heads."""

    cos: Float[Tensor, "*batch half"]
    sin: Float[Tensor, "*batch half"]


def rope_problem(parameters: Mapping[str, Any]) -> str | None:
    """Return why these `rope_parameters` cannot be used by a drafter, or None."""
    kind = parameters.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        return f"rope_type {kind!r} is not among those a drafter computes: {', '.join(ROPE_TYPES)}"
    missing = [key for key in _KEYS[kind] if parameters.get(key) is None]
    if missing:
        return f"rope_type {kind!r} needs {', '.join(missing)}"
    if float(parameters.get("partial_rotary_factor", 1.0)) != 1.0:
        return "partial rotary embedding is not among what a drafter computes"
    if parameters.get("mrope_section") is not None:
        return "multimodal rotary embedding is not among what a drafter computes"
    return None


def plain_theta(parameters: Mapping[str, Any]) -> float | None:
    """Return the base of a plain rotary embedding; None for every other kind."""
    plain = parameters.get("rope_type", "default") == "default" and not rope_problem(parameters)
    return float(parameters["rope_theta"]) if plain else None


def plain_rope(theta: float) -> dict[str, Any]:
    """Return the `rope_parameters` of a plain rotary embedding."""
    return {"rope_type": "default", "rope_theta": theta}


def serving_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return only the keys that count, for `config.json`."""
    kind = parameters.get("rope_type", "default")
    return {**{key: parameters[key] for key in _KEYS[kind]}, "rope_type": kind}


def inverse_frequencies(head_dim: int, parameters: Mapping[str, Any]) -> Float[Tensor, "half"]:
    """Return the angle per position of each pair of dimensions, in fp32.

    `llama3` stretches wavelengths beyond `original_max_position_embeddings / low_freq_factor` by
    `factor`, leaves those below `/ high_freq_factor` and goes smoothly in between.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequency = 1.0 / (float(parameters["rope_theta"]) ** exponent)
    kind = parameters.get("rope_type", "default")
    if kind == "linear":
        return frequency / parameters["factor"]
    if kind == "llama3":
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        turns = parameters["original_max_position_embeddings"] * frequency / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequency * (kept + (1 - kept) / parameters["factor"])
    return frequency


def rotation(positions: Int[Tensor, "*batch"], frequencies: Float[Tensor, "half"]) -> Rotation:
    """Return the rotation of every position; angles in fp32."""
    angles = positions[..., None].float() * frequencies
    return Rotation(angles.cos(), angles.sin())


def rotate(
    x: Float[Tensor, "*batch head head_dim"], by: Rotation
) -> Float[Tensor, "*batch head head_dim"]:
    """Rotate dimension pairs (i, i + head_dim / 2) of every head by its position's angle."""
    cos, sin = by.cos.to(x.dtype).unsqueeze(-2), by.sin.to(x.dtype).unsqueeze(-2)
    if torch.compiler.is_compiling():
        left, right = x.chunk(2, -1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)
    return _RotateFunction.apply(x, cos, sin)


class _RotateFunction(torch.autograd.Function):
    """The gradient of a rotation is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, sin, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    left, right = x.chunk(2, -1)
    out = torch.empty_like(x)
    out_left, out_right = out.chunk(2, -1)
    torch.mul(left, cos, out=out_left).addcmul_(right, sin, value=-sign)
    torch.mul(right, cos, out=out_right).addcmul_(left, sin, value=sign)
    return out

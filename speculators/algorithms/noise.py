"""Noise on what a drafter reads: makes it robust against its own errors while decoding."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from speculators.algorithms.base import StepContext


def noisy(
    states: Float[Tensor, "token aux_layer hidden"], width: float, step: StepContext
) -> Float[Tensor, "token aux_layer hidden"]:
    """Return the verifier's states plus uniform noise between -width and width."""
    if width == 0:
        return states
    seed = step.generator("noise").initial_seed()
    generator = torch.Generator(states.device).manual_seed(seed)
    return states + torch.empty_like(states).uniform_(-width, width, generator=generator)

"""How much each slot of a block counts, and what the sum is divided by.

DFlash specification, sections 9 and 10.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from speculators.algorithms.dflash.config import Normalization, PositionWeights

_GAMMAS = ((8, 4.0), (10, 5.0), (16, 7.0))


def default_gamma(block_size: int) -> float:
    """Return the decay constant for a block size: 4, 5 and 7 at 8, 10 and 16.

    Linear in between; beyond either end the slope of the nearest pair goes on (1/2 per slot below
    8, 1/3 above 16), and gamma is never below 1.
    """
    (b0, g0), (b1, g1) = _GAMMAS[:2] if block_size <= _GAMMAS[1][0] else _GAMMAS[1:]
    return max(1.0, g0 + (block_size - b0) * (g1 - g0) / (b1 - b0))


def slot_weights(kind: PositionWeights, block_size: int, gamma: float) -> Float[Tensor, "block"]:
    """Return the fixed weights of a block's slots; slot 0, the anchor, has none.

    exp: exp(-(k - 1) / gamma). uniform, and dpace before it looks at the losses: 1.
    """
    slot = torch.arange(block_size, dtype=torch.float32)
    weights = torch.ones_like(slot)
    if kind is PositionWeights.exp:
        weights = torch.exp(-(slot - 1) / gamma)
    weights[0] = 0
    return weights


def dpace_weights(
    ce: Float[Tensor, "anchor block"], trained: Bool[Tensor, "anchor block"], alpha: float
) -> Float[Tensor, "anchor block"]:
    """Weight each slot by the accepted tokens that still depend on it (arXiv:2605.18810).

    With s_i = (1 - alpha) exp(-ce_i) + alpha (1 where nothing is trained) and P_i = s_1 ... s_i,
    slot i weighs sum of P_j over trained j >= i.

    Args:
        ce: cross-entropy of each slot, detached.
        trained: slots that have a cross-entropy.
        alpha: smoothing.
    """
    survival = torch.where(trained, (1 - alpha) * torch.exp(-ce) + alpha, 1).cumprod(-1)
    counted = survival * trained
    return counted.flip(-1).cumsum(-1).flip(-1) * trained


def divisor(weights: Float[Tensor, "slot"], kind: Normalization) -> Float[Tensor, ""]:
    """Return what the weighted sum of losses is divided by: sum of weights, or number of slots."""
    if kind is Normalization.weights:
        return weights.sum().detach()
    return torch.full_like(weights.sum().detach(), float(len(weights)))

"""A start from the verifier's own layers: they already know how its residual stream is read.

The context a draft layer sees is a mix of the verifier's streams; a copied layer expects the
stream of its own depth, normed. So the fusion starts as the deepest stream read, with the mean gain
of the copied layers, and training takes it from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from speculators.algorithms.dflash.network import DFlashNetwork
from speculators.algorithms.weights import copy_layer


@torch.no_grad()
def copy_layers(
    network: DFlashNetwork,
    layers: Sequence[Mapping[str, Tensor]],
    norm_weight: Float[Tensor, "hidden"],
) -> None:
    """Overwrite draft layers, final norm and fusion.

    Args:
        network: freshly initialised.
        layers: verifier layers, one per draft layer, by the names inside a layer.
        norm_weight: factor of the verifier's final norm.

    Raises:
        ConfigError: a weight is missing there or has another shape.
    """
    for index, (target, source) in enumerate(zip(network.layers, layers, strict=True)):
        copy_layer(index, target, source)
    network.norm.weight.copy_(norm_weight)
    gains = torch.stack([source["input_layernorm.weight"] for source in layers])
    network.hidden_norm.weight.copy_(gains.mean(0))
    hidden = network.fc.weight.shape[0]
    network.fc.weight[:, -hidden:] += torch.eye(hidden)

"""A start from the verifier's own last layers: they already know how its stream becomes a token.

A copied first layer reads the stream in the half of its input that holds the state; the half of
the embedding starts small and random. The fusion starts as the deepest stream read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from speculators.algorithms.eagle3.network import FusedNetwork
from speculators.algorithms.weights import copy_layer

_WIDENED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")


@torch.no_grad()
def copy_layers(
    network: FusedNetwork,
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
    hidden = network.fc.weight.shape[0]
    for index, (target, source) in enumerate(zip(network.chain_layers(), layers, strict=True)):
        if index == 0:
            source = _widened(source, dict(target.named_parameters()))
        copy_layer(index, target, source)
    network.norm.weight.copy_(norm_weight)
    network.fc.weight[:, -hidden:] += torch.eye(hidden)


def _widened(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a layer that reads [embedding; state] as `source` reads the state."""
    found = {name: value for name, value in source.items() if name not in _WIDENED}
    for name in _WIDENED:
        embedding = target[name][:, : target[name].shape[1] // 2]
        if name in source:
            found[name] = torch.cat([embedding, source[name].to(embedding.dtype)], 1)
    found["hidden_norm.weight"] = source["input_layernorm.weight"]
    found["input_layernorm.weight"] = torch.ones_like(source["input_layernorm.weight"])
    return found

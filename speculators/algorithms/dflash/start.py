"""A start from the verifier's own layers: they already know how its residual stream is read.

The context a draft layer sees is a mix of the verifier's streams; a copied layer expects the
stream of its own depth, normed. So the fusion starts as the deepest stream read, with the mean gain
of the copied layers, and training takes it from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from speculators.algorithms.dflash.network import DFlashNetwork
from speculators.errors import ConfigError

_SHARP_HEAD_DIM = 128


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
        _copy_layer(index, target, source)
    network.norm.weight.copy_(norm_weight)
    gains = torch.stack([source["input_layernorm.weight"] for source in layers])
    network.hidden_norm.weight.copy_(gains.mean(0))
    hidden = network.fc.weight.shape[0]
    network.fc.weight[:, -hidden:] += torch.eye(hidden)


def _copy_layer(index: int, target: nn.Module, source: Mapping[str, Tensor]) -> None:
    for name, parameter in target.named_parameters():
        value = source.get(name)
        if value is None and name.endswith(("q_norm.weight", "k_norm.weight")):
            # The verifier does not norm queries and keys. Unit vectors of a short head give flat
            # attention; this gain makes them as sharp as those of a head of 128.
            parameter.fill_((_SHARP_HEAD_DIM / parameter.shape[0]) ** 0.25)
            continue
        if value is None or value.shape != parameter.shape:
            found = "nothing" if value is None else str(list(value.shape))
            raise ConfigError(
                f"speculator.init=verifier: layers.{index}.{name} needs {list(parameter.shape)}, "
                f"the verifier's layer has {found}; use speculator.init=random"
            )
        parameter.copy_(value)

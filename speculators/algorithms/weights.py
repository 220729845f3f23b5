"""Draft layers that start as copies of verifier layers (`speculator.init=verifier`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from speculators.errors import ConfigError

_SHARP_HEAD_DIM = 128


@torch.no_grad()
def copy_layer(index: int, target: nn.Module, source: Mapping[str, Tensor]) -> None:
    """Overwrite a draft layer with a verifier layer.

    Args:
        index: of the draft layer, for messages.
        target: the draft layer.
        source: the verifier layer's tensors, by the names inside a layer.

    Raises:
        ConfigError: a weight is missing there or has another shape.
    """
    for name, parameter in target.named_parameters():
        value = source.get(name)
        if name == "post_attention_layernorm.weight":
            # Families that norm outputs too (Gemma) have another name for the norm before the MLP.
            value = source.get("pre_feedforward_layernorm.weight", value)
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

"""The first layers of a verifier, to check where somebody else says their states come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from speculators.verifier.loading import quiet
from speculators.verifier.model import VerifierModel
from speculators.verifier.spec import VerifierSpec

MAX_BYTES = 4 * 2**30
"""Weights worth loading for a check."""


def reference_layers(spec: VerifierSpec, layer_ids: tuple[int, ...]) -> int | None:
    """Return how many first layers are cheap enough to run; None when not one of the ids is.

    All of them when the whole model is small; else as many as the smallest id above 0 needs. A
    verifier whose files are not here, or whose layers differ, is never cheap.

    Args:
        spec: the verifier.
        layer_ids: ids worth comparing.
    """
    if spec.revision is not None or not list(Path(spec.folder).glob("*.safetensors")):
        return None
    item = torch.float32.itemsize if spec.dtype == "float32" else torch.bfloat16.itemsize
    attention = 2 * (spec.num_attention_heads + spec.num_key_value_heads) * spec.head_dim
    layer = spec.hidden_size * (attention + 3 * spec.intermediate_size) * item
    tables = 2 * spec.vocab_size * spec.hidden_size * item
    smallest = min((i for i in layer_ids if 0 < i <= spec.num_layers), default=spec.num_layers)
    for count in (spec.num_layers, smallest):
        if tables + count * layer <= MAX_BYTES:
            return count
    return None


class FirstLayers:
    """Runs the first layers of a verifier.

    Args:
        spec: the verifier, in a local folder.
        count: layers to load.
        trust_remote_code: run model code that comes with it.
    """

    def __init__(self, spec: VerifierSpec, count: int, *, trust_remote_code: bool = False) -> None:
        self._count = count
        config = AutoConfig.from_pretrained(
            spec.folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
        config.num_hidden_layers = count
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:count]
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                spec.folder,
                config=config,
                dtype="auto",
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                use_safetensors=True,
            )
        self._model = VerifierModel(replace(spec, num_layers=count), model)

    def __call__(self, prompt: Int[Tensor, "token"]) -> dict[int, Float[Tensor, "token hidden"]]:
        """Return the streams entering layers 0, 1, ... up to the one after the last loaded."""
        ids = range(self._count)
        states = self._model.capture([prompt], list(ids))[0]
        streams = dict(zip(ids, states.aux.unbind(1), strict=True))
        return {**streams, self._count: states.last}

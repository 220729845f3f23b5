"""The first layers of a verifier, to check where somebody else says their states come from."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig

from speculators.errors import ConfigError
from speculators.verifier.loading import load_folder
from speculators.verifier.model import VerifierModel
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.weights import INDEX, first_layer_files

MAX_BYTES = 4 * 2**30
"""Weights worth loading for a check."""


def reference_layers(spec: VerifierSpec, layer_ids: tuple[int, ...]) -> int:
    """Return how many first layers to run so that states can be compared with them.

    All of them when the whole model is small; else one more than the smallest id above 0 needs, so
    that ids that are off by one can be told; else just as many. Nothing is downloaded for a check:
    of a model of the Hub those files count that are here, and its embedding always is.

    Args:
        spec: the verifier.
        layer_ids: ids worth comparing.

    Raises:
        ConfigError: not one of the ids can be compared, and why.
    """
    smallest = min((i for i in layer_ids if 0 < i <= spec.num_layers), default=spec.num_layers)
    problem = ""
    for count in sorted({spec.num_layers, min(smallest + 1, spec.num_layers), smallest})[::-1]:
        if (size := _num_bytes(spec, count)) > MAX_BYTES:
            problem = f"the first {count} layers take {size / 2**30:.1f} GiB"
            problem += f" (allowed for a check: {MAX_BYTES / 2**30:.0f})"
            continue
        files = sorted(set(first_layer_files(spec, count).values()))
        missing = [name for name in files if not (Path(spec.folder) / name).is_file()]
        if not missing:
            return count
        problem = f"{', '.join(missing)} of {spec.name_or_path} not downloaded"
    raise ConfigError(problem)


def _num_bytes(spec: VerifierSpec, count: int) -> int:
    item = torch.float32.itemsize if spec.dtype == "float32" else torch.bfloat16.itemsize
    attention = 2 * (spec.num_attention_heads + spec.num_key_value_heads) * spec.head_dim
    layer = spec.hidden_size * (attention + 3 * spec.intermediate_size) * item
    return 2 * spec.vocab_size * spec.hidden_size * item + count * layer


class FirstLayers:
    """Runs the first layers of a verifier.

    Args:
        spec: the verifier; the files of these layers are in its folder.
        count: layers to load.
        trust_remote_code: run model code that comes with it.

    Raises:
        ConfigError: they cannot be loaded.
    """

    def __init__(self, spec: VerifierSpec, count: int, *, trust_remote_code: bool = False) -> None:
        self._count = count
        with _cut(spec, count) as folder:
            config = AutoConfig.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
            text = config.get_text_config()
            text.num_hidden_layers = count
            if getattr(text, "layer_types", None):
                text.layer_types = text.layer_types[:count]
            model = load_folder(
                folder, spec, config=config, dtype="auto", trust_remote_code=trust_remote_code
            )
        self._model = VerifierModel(replace(spec, num_layers=count), model)

    def __call__(self, prompt: Int[Tensor, "token"]) -> dict[int, Float[Tensor, "token hidden"]]:
        """Return the streams entering layers 0, 1, ... up to the one after the last loaded."""
        ids = range(self._count)
        states = self._model.capture([prompt], list(ids))[0]
        streams = dict(zip(ids, states.aux.unbind(1), strict=True))
        return {**streams, self._count: states.last}


@contextmanager
def _cut(spec: VerifierSpec, count: int) -> Iterator[Path]:
    """Make a folder like the verifier's whose index ends behind the first layers.

    `transformers` opens every file an index names, and those of later layers may not be here.
    """
    own, tensors = Path(spec.folder), first_layer_files(spec, count)
    needed = set(tensors.values())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in own.iterdir():
            if path.name != INDEX and (path.suffix != ".safetensors" or path.name in needed):
                (folder / path.name).symlink_to(path.resolve())
        if (own / INDEX).is_file():
            (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": tensors}))
        yield folder

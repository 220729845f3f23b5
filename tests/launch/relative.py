"""Relatives of the tiny verifier: the same model with other token ids, more rows, other depth."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from speculators.verifier import tiny

NUM_WORDS = 1261  # ids below belong to ordinary tokens
MORE_ROWS = 64
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)")


def shuffled_ids(seed: int = 0) -> Tensor:
    """Return a new id for each of the tiny verifier's 1,280 rows; special ones keep theirs."""
    order = torch.arange(1280)
    words = torch.randperm(NUM_WORDS, generator=torch.Generator().manual_seed(seed))
    order[:NUM_WORDS] = words
    return order


def make_relative(
    folder: Path, ids: Tensor, layers: Sequence[int | None], *, noise: float = 0.0
) -> Path:
    """Write a verifier with the tiny one's weights.

    Args:
        folder: where to.
        ids: new id of each token.
        layers: layers of the tiny verifier to take, in order; None for one that changes nothing.
        noise: relative size of random changes to every matrix.
    """
    source, draw = Path(tiny.folder()), torch.Generator().manual_seed(7)
    folder.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text())
    config |= {
        "num_hidden_layers": len(layers),
        "layer_types": ["full_attention"] * len(layers),
        "max_window_layers": len(layers),
        "vocab_size": len(ids) + MORE_ROWS,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copy(source / name, folder)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word: int(ids[index]) for word, index in words.items()}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    old = {n: t.float() for n, t in load_file(source / "model.safetensors").items()}
    new = {name: value for name, value in old.items() if not _LAYER.match(name)}
    rows = torch.randn(len(ids) + MORE_ROWS, 128, generator=draw) * 0.1
    rows[ids] = old["model.embed_tokens.weight"]
    new["model.embed_tokens.weight"] = rows
    for place, taken in enumerate(layers):
        for name, value in old.items():
            found = _LAYER.match(name)
            if found is None or int(found[1]) != (taken or 0):
                continue
            silent = taken is None and found[2].startswith(("self_attn.o_proj", "mlp.down_proj"))
            new[f"model.layers.{place}.{found[2]}"] = torch.zeros_like(value) if silent else value
    for name, value in new.items():
        if value.ndim == 2 and noise:
            change = torch.randn(value.shape, generator=draw) * value.std() * noise
            new[name] = value + change
    save_file({name: t.clone() for name, t in new.items()}, folder / "model.safetensors")
    return folder

"""A checkpoint folder of any layout: its `config.json` and its tensors, read and written whole."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speculators.conversion.durable import new_folder, replace_text
from speculators.conversion.integrity import CONFIG_FILE, WEIGHTS_FILE
from speculators.conversion.layout import read_config, read_tensors, write_tensors
from speculators.errors import CheckpointError

MASK_FILE = "mask_embedding.pt"
"""A learned mask vector; served beside the weights."""

_PICKLED = "pytorch_model.bin"


@dataclass(frozen=True)
class Content:
    """What a checkpoint folder holds.

    Attributes:
        folder: where it was read.
        weights: its file of tensors.
        config: `config.json`.
        tensors: by name, on the CPU, in the number format of the file.
    """

    folder: Path
    weights: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]


def read_content(folder: Path) -> Content:
    """Read a folder with `config.json` and one file of weights.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are in several files.
    """
    config = read_config(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.exists() and (folder / _PICKLED).exists():
        return Content(folder, folder / _PICKLED, config, _unpickled(folder / _PICKLED))
    return Content(folder, weights, config, read_tensors(weights))


def write_content(
    target: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    texts: Mapping[str, str],
    copies: Mapping[str, Path],
) -> None:
    """Write a folder aside, read it back, compare, and give it its name.

    Args:
        target: final name; may be an empty folder.
        config: `config.json`.
        tensors: content of `model.safetensors`.
        texts: further files by name.
        copies: further files by name, copied as they are.

    Raises:
        CheckpointError: the folder holds something, or cannot be written.
    """
    # Cloned: the file format refuses tensors that share memory.
    own = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    refuse_filled(target)
    if target.is_dir():
        target.rmdir()
    with new_folder(target) as prepared:
        write_tensors(prepared / WEIGHTS_FILE, own)
        replace_text(prepared / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
        for name, text in texts.items():
            replace_text(prepared / name, text)
        for name, path in copies.items():
            shutil.copyfile(path, prepared / name)
        again = read_tensors(prepared / WEIGHTS_FILE)
        if not all(same_bits(again[name], tensor) for name, tensor in own.items()):
            raise CheckpointError(f"{target}: reads back differently; check the disk")


def refuse_filled(target: Path) -> None:
    """Hold that a folder can be written without touching anything.

    Raises:
        CheckpointError: something is there.
    """
    if target.is_symlink() or target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise CheckpointError(
            f"output_dir={target}: holds something already, and is not overwritten; give a new "
            "folder"
        )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal in number format, shape and value."""
    return a.dtype == b.dtype and torch.equal(a, b)


def _unpickled(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: is damaged or holds more than tensors ({first})") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"{path}: must hold tensors by name")
    return tensors

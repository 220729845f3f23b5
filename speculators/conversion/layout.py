"""The layout vLLM serves: one folder with `config.json` and `model.safetensors`.

Checkpoint specification, sections 3 to 5 and 7. vLLM neither notices a missing draft tensor nor
survives an unknown one, so both directions compare every name and shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from speculators.algorithms.base import Drafter
from speculators.algorithms.registry import drafter_class
from speculators.algorithms.serving import read_drafter_spec
from speculators.config.schema import AttentionBackend, FloatType
from speculators.conversion.durable import aside, flush_file, replace_text
from speculators.conversion.integrity import (
    CONFIG_FILE,
    TOKENIZER_KEY,
    WEIGHTS_FILE,
    check_complete,
    check_config,
    check_draft_vocabulary,
    check_finite,
    check_names,
    check_tokenizer,
    check_verifier,
)
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import CheckpointError, ConfigError
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.weights import VerifierTables

MAPS = ("d2t", "t2d")
"""Tensors that only a reduced draft vocabulary has."""


@dataclass(frozen=True)
class ModelFiles:
    """What vLLM serves of a drafter, as it was at one moment.

    Attributes:
        config: content of `config.json`.
        tensors: content of `model.safetensors`: copies, on the host, in their number format.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, drafter: Drafter[Any], dtype: FloatType, folder: Path) -> ModelFiles:
        """Copy what is saved of a drafter, and check it.

        Args:
            drafter: its weights may lie on any device.
            dtype: number format of the floating-point tensors; integers and booleans keep theirs.
            folder: where it will be written, for messages.

        Raises:
            CheckpointError: a value is NaN or infinite, a tensor is missing or has no place in the
                file, or `config.json` contradicts the drafter.
        """
        config = drafter.serving_config() | {"dtype": dtype.value}
        config[TOKENIZER_KEY] = drafter.spec.tokenizer_hash
        tensors = _converted(drafter.saved_tensors(), getattr(torch, dtype.value))
        check_config(folder, config, drafter)
        check_complete(folder / WEIGHTS_FILE, tensors, drafter)
        check_finite(folder / WEIGHTS_FILE, tensors)
        return cls(config, tensors)

    def write(self, folder: Path) -> None:
        """Write both files; others of the folder stay.

        Raises:
            CheckpointError: the folder cannot be written, or would not be served as it is.
        """
        foreign = [p.name for p in sorted(folder.glob("*.safetensors")) if p.name != WEIGHTS_FILE]
        if foreign:
            raise CheckpointError(
                f"{folder}: holds {', '.join(foreign)}, which vLLM would read too; "
                "write to another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / WEIGHTS_FILE, self.tensors)
        replace_text(folder / CONFIG_FILE, json.dumps(self.config, indent=2) + "\n")


def write_model(folder: Path, drafter: Drafter[Any], dtype: FloatType) -> None:
    """Write a drafter as a folder that vLLM serves as it is.

    Everything is checked before the first byte is written.

    Args:
        folder: made if it is missing.
        drafter: what to save; its weights may lie on any device.
        dtype: number format of the floating-point tensors.

    Raises:
        CheckpointError: as `ModelFiles.of` and `ModelFiles.write`.
    """
    ModelFiles.of(drafter, dtype, folder).write(folder)


def read_model(
    folder: Path,
    *,
    spec: VerifierSpec,
    tables: VerifierTables,
    attention: AttentionBackend = AttentionBackend.auto,
) -> Drafter[Any]:
    """Rebuild the drafter of a checkpoint folder, on the CPU.

    Args:
        folder: a folder with `config.json` and `model.safetensors`.
        spec: the verifier it is meant to draft for.
        tables: the verifier's embedding and head, for what the file leaves out.
        attention: backend of the rebuilt drafter.

    Raises:
        CheckpointError: files are missing or damaged, tensors are missing, unknown or misshaped,
            or the checkpoint was made for a verifier of other sizes or tokens.
    """
    config = read_serving_config(folder)
    check_verifier(folder, config, spec)
    vocabulary = read_vocabulary(folder, spec.vocab_size)
    check_draft_vocabulary(folder, config, vocabulary)
    check_tokenizer(folder, config, vocabulary, spec)
    algorithm = algorithm_of(folder, config)
    drafter = algorithm.build(
        algorithm.config_from_serving(config),
        read_drafter_spec(config, spec),
        vocabulary,
        embed_tokens=tables.embed_tokens,
        lm_head=tables.lm_head,
        generator=torch.Generator().manual_seed(0),
        attention=attention,
    )
    load_weights(drafter, folder)
    return drafter


def algorithm_of(folder: Path, config: Mapping[str, Any]) -> type[Drafter[Any]]:
    """Return the drafter class `config.json` names.

    Raises:
        CheckpointError: no such algorithm.
    """
    try:
        return drafter_class(str(config["speculators_model_type"]))
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error


def read_serving_config(folder: Path) -> dict[str, Any]:
    """Return `config.json` of a checkpoint folder.

    Raises:
        CheckpointError: no such folder or file, not JSON, or no `speculators_model_type` in it.
    """
    config = read_config(folder)
    if "speculators_model_type" not in config:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: has no speculators_model_type, so it does not describe a "
            "drafter of this layout"
        )
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """Return `config.json` of a folder, whatever layout it has.

    Raises:
        CheckpointError: no such folder or file, or not a JSON object.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); give a checkpoint folder, for example "
            "checkpoint=RUN/checkpoints/checkpoint_best"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, holds {type(config).__name__}")
    return config


def read_vocabulary(folder: Path, vocab_size: int) -> DraftVocabulary:
    """Return the draft vocabulary of a checkpoint; without maps, every token can be drafted.

    Args:
        folder: checkpoint folder.
        vocab_size: rows of the verifier's embedding, V.

    Raises:
        CheckpointError: only one map is there, the maps contradict each other, or they are for
            another vocabulary.
    """
    path = folder / WEIGHTS_FILE
    with _open(path) as file:
        maps = {name: file.get_tensor(name) for name in MAPS if name in set(file.keys())}
    return vocabulary_of(path, maps, vocab_size)


def vocabulary_of(path: Path, tensors: Mapping[str, Tensor], vocab_size: int) -> DraftVocabulary:
    """Return the draft vocabulary that the maps among `tensors` name, see `read_vocabulary`."""
    maps = {name: tensors[name] for name in MAPS if name in tensors}
    if not maps:
        return DraftVocabulary.full(vocab_size)
    if len(maps) == 1:
        (present,) = maps
        absent = MAPS[1 - MAPS.index(present)]
        raise CheckpointError(f"{path}: has {present} but no {absent}; both are needed or neither")
    if len(maps["t2d"]) != vocab_size:
        raise CheckpointError(
            f"{path}: t2d has {len(maps['t2d'])} entries, the verifier's vocabulary {vocab_size}: "
            "made for another verifier"
        )
    try:
        return DraftVocabulary.from_maps(maps["d2t"], maps["t2d"])
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_weights(drafter: Drafter[Any], folder: Path) -> None:
    """Copy every tensor of `model.safetensors` into a drafter of the same shape.

    Raises:
        CheckpointError: a tensor is missing, unknown, misshaped, NaN or infinite, or the maps
            are those of another draft vocabulary.
    """
    path = folder / WEIGHTS_FILE
    tensors = read_tensors(path)
    expected = drafter.saved_tensors()
    check_names(path, tensors, expected)
    check_finite(path, tensors)
    places = drafter.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in tensors.items():
            if name in places:
                places[name].copy_(value)
            elif not _same(value, expected[name].cpu()):
                raise CheckpointError(
                    f"{path}: {name} differs from the drafter's own; the checkpoint belongs to "
                    "another draft vocabulary or verifier"
                )


def _same(a: Tensor, b: Tensor) -> bool:
    """Compare in the coarser of two number formats: one may be the other, rounded for serving."""
    coarser = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(a.to(coarser), b.to(coarser))


def _converted(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    # Cloned: the file format refuses tensors that share memory.
    return {
        name: t.detach().to("cpu", dtype if t.is_floating_point() else t.dtype).clone().contiguous()
        for name, t in tensors.items()
    }


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file aside, readable for others as any new file is, and rename it.

    Raises:
        CheckpointError: it cannot be written.
    """
    prepared = aside(path)
    try:
        prepared.touch()
        mode = prepared.stat().st_mode  # safetensors would make it 0600, unreadable for a server
        save_file(tensors, prepared, metadata={"format": "pt"})
        prepared.chmod(mode)
        flush_file(prepared)
        prepared.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from error
    finally:
        prepared.unlink(missing_ok=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return every tensor of a safetensors file that is alone in its folder, by name.

    Raises:
        CheckpointError: it is missing or damaged, or others lie beside it.
    """
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}


def _open(path: Path) -> Any:
    """Open a safetensors file, after checking that vLLM would read nothing beside it."""
    beside = [p.name for p in sorted(path.parent.glob("*.safetensors")) if p.name != path.name]
    if beside:
        raise CheckpointError(
            f"{path.parent}: holds {', '.join(beside)} beside {path.name}; a drafter is one file"
        )
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: does not exist") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is damaged or not a safetensors file ({error})") from error

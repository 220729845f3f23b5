"""Reads the three tables training needs of a verifier straight from its safetensors files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from speculators.errors import ConfigError
from speculators.verifier import hub
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import NormKind, VerifierSpec

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INDEX = "model.safetensors.index.json"
"""Says which file holds a tensor of a model in several files."""

# Where the text model stands in plain and in multimodal checkpoints.
_PREFIXES = (
    *("model.", "", "model.language_model.", "language_model.model.", "language_model."),
    *("model.text_model.", "text_model.model.", "text_model."),
)
_HEAD_PREFIXES = ("", "language_model.", "model.", "model.language_model.", "text_model.")


@dataclass(frozen=True)
class VerifierTables:
    """Embedding, head and final norm.

    Attributes:
        embed_tokens: token embeddings, before any scaling by the model.
        lm_head: the head; the same tensor as `embed_tokens` where they are tied.
        norm_weight: weight of the final norm, as stored.
    """

    embed_tokens: Float[Tensor, "vocab hidden"]
    lm_head: Float[Tensor, "vocab hidden"]
    norm_weight: Float[Tensor, "hidden"]


def read_tables(spec: VerifierSpec, dtype: torch.dtype | None = None) -> VerifierTables:
    """Read embedding, head and final norm; nothing else is loaded or, from the Hub, downloaded.

    Args:
        spec: the verifier.
        dtype: number format of the result; None keeps the stored one.

    Raises:
        ConfigError: a table is missing, has another shape than the configuration says, or is
            stored in a format that is not a plain floating-point one.
    """
    files = _tensor_files(spec)
    names = {
        "embed_tokens": _find(spec, files, [f"{p}embed_tokens.weight" for p in _PREFIXES]),
        "norm_weight": _find(spec, files, [f"{p}norm.weight" for p in _PREFIXES]),
    }
    head_names = [f"{p}lm_head.weight" for p in _HEAD_PREFIXES]
    if not (spec.tie_word_embeddings and files.keys().isdisjoint(head_names)):
        names["lm_head"] = _find(spec, files, head_names)
    if (bias := names.get("lm_head", "").removesuffix("weight") + "bias") in files:
        raise ConfigError(
            f"{_at(spec)}: its head has a bias ({bias}); such heads are not supported"
        )
    tables = _load(spec, {name: files[name] for name in names.values()})
    embed_tokens = tables[names["embed_tokens"]]
    lm_head = tables[names["lm_head"]] if "lm_head" in names else embed_tokens
    if spec.tie_word_embeddings and torch.equal(lm_head, embed_tokens):
        lm_head = embed_tokens
    norm_weight = tables[names["norm_weight"]]
    table_shape = (spec.vocab_size, spec.hidden_size)
    _check(spec, names["embed_tokens"], embed_tokens, table_shape)
    _check(spec, names.get("lm_head", names["embed_tokens"]), lm_head, table_shape)
    _check(spec, names["norm_weight"], norm_weight, table_shape[1:])
    if dtype is None:
        return VerifierTables(embed_tokens, lm_head, norm_weight)
    converted = embed_tokens.to(dtype)
    head = converted if lm_head is embed_tokens else lm_head.to(dtype)
    return VerifierTables(converted, head, norm_weight.to(dtype))


def read_layers(spec: VerifierSpec, layers: Sequence[int]) -> list[dict[str, Tensor]]:
    """Read whole decoder layers in fp32, by the names inside a layer; norms as factors.

    Args:
        spec: the verifier.
        layers: which, 0 to L - 1.

    Raises:
        ConfigError: the files do not hold such layers, or hold them quantised.
    """
    files = _tensor_files(spec)
    prefix = _layers_prefix(spec, files)
    wanted = {name: f for i in layers for name, f in files.items() if f"{prefix}{i}." in name}
    tensors = _load(spec, wanted)
    shift = 1.0 if spec.norm_kind is NormKind.rms_plus_one else 0.0
    found = []
    for layer in layers:
        start = f"{prefix}{layer}."
        inside = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
        for name, tensor in inside.items():
            if tensor.dtype not in _FLOATS:
                raise ConfigError(f"{_at(spec)}: {start}{name} is stored as {tensor.dtype}")
            inside[name] = tensor.float() + (shift if "norm" in name else 0.0)
        found.append(inside)
    return found


def first_layer_files(spec: VerifierSpec, count: int) -> dict[str, str]:
    """Return the file of every tensor but those of decoder layers from `count` on.

    Args:
        spec: the verifier.
        count: how many layers.

    Raises:
        ConfigError: there are no such layers in the files.
    """
    files = _tensor_files(spec)
    prefix = _layers_prefix(spec, files)
    later = tuple(f"{prefix}{layer}." for layer in range(count, spec.num_layers))
    return {name: file for name, file in files.items() if not name.startswith(later)}


def make_head(spec: VerifierSpec, tables: VerifierTables) -> VerifierHead:
    """Return the teacher: final norm and head, sharing the memory of `tables.lm_head`."""
    return VerifierHead(spec, tables.norm_weight, tables.lm_head)


def _tensor_files(spec: VerifierSpec) -> dict[str, str]:
    """Return the file that holds each tensor, by tensor name."""
    folder = Path(spec.folder)
    index = folder / INDEX
    if index.is_file():
        try:
            return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{_at(spec)}: {index} is no index of safetensors files") from error
    if spec.revision is not None:
        folder = hub.locate(spec.name_or_path, spec.revision, hub.WEIGHT_FILES).folder
    files: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with _opened(spec, path) as tensors:
            files.update(dict.fromkeys(tensors.keys(), path.name))
    if not files:
        raise ConfigError(
            f"{_at(spec)}: no {INDEX} and no *.safetensors in {folder}; other weight formats are "
            "not read: save the model again with transformers"
        )
    return files


def _layers_prefix(spec: VerifierSpec, files: dict[str, str]) -> str:
    start = _find(spec, files, [f"{p}layers.0.input_layernorm.weight" for p in _PREFIXES])
    return start.removesuffix("0.input_layernorm.weight")


def _find(spec: VerifierSpec, files: dict[str, str], names: Iterable[str]) -> str:
    names = list(names)
    for name in names:
        if name in files:
            return name
    raise ConfigError(
        f"{_at(spec)}: its weights have none of {', '.join(names)}; {len(files)} tensors are "
        f"there, the first is {next(iter(sorted(files)))}"
    )


def _load(spec: VerifierSpec, files: dict[str, str]) -> dict[str, Tensor]:
    folder = Path(spec.folder)
    if spec.revision is not None:
        folder = hub.locate(spec.name_or_path, spec.revision, sorted(set(files.values()))).folder
    tables = {}
    for name, file in files.items():
        with _opened(spec, folder / file) as tensors:
            if name not in tensors.keys():  # noqa: SIM118 (no mapping)
                raise ConfigError(
                    f"{_at(spec)}: {name} is not in {file}, where the index says it is"
                )
            tables[name] = tensors.get_tensor(name)
    return tables


def _opened(spec: VerifierSpec, path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise ConfigError(f"{_at(spec)}: {path} is missing; download the model again") from error
    except SafetensorError as error:
        raise ConfigError(
            f"{_at(spec)}: {path} is damaged ({error}); download the model again"
        ) from error


def _check(spec: VerifierSpec, name: str, table: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(table.shape) != shape:
        raise ConfigError(
            f"{_at(spec)}: {name} has shape {list(table.shape)}, its configuration says "
            f"{list(shape)}"
        )
    if table.dtype not in _FLOATS:
        raise ConfigError(
            f"{_at(spec)}: {name} is stored as {table.dtype}; allowed: float32, bfloat16, float16 "
            "(quantised embeddings and heads cannot be read)"
        )


def _at(spec: VerifierSpec) -> str:
    return f"verifier.name_or_path={spec.name_or_path}"

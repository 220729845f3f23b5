"""Checkpoints from one layout to another, tensor by tensor and bit by bit.

Two layouts never meet: what is read becomes a typed configuration and tensors in this project's
names, and from there is written. Both ends compare every name, shape and key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speculators.algorithms.base import Drafter
from speculators.algorithms.layouts import BOOKKEEPING, Layout, Wishes
from speculators.algorithms.registry import layouts
from speculators.algorithms.serving import TRAINING_KEY, read_drafter_spec
from speculators.config.wording import did_you_mean
from speculators.conversion.folders import MASK_FILE, Content, same_bits
from speculators.conversion.integrity import (
    TOKENIZER_KEY,
    check_config,
    check_draft_vocabulary,
    check_finite,
    check_names,
    check_tokenizer,
    check_verifier,
)
from speculators.conversion.layout import algorithm_of, vocabulary_of
from speculators.errors import CheckpointError, ConfigError
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.weights import VerifierTables

OURS = "speculators"
"""The layout this project writes and vLLM serves."""

SUMMARY = "the layout vLLM serves as it is"
_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"
# Written by other tools beside what counts; no reader of this layout acts on them.
_IGNORED = BOOKKEEPING | {TOKENIZER_KEY, "has_no_defaults_at_init", "model_type"}


@dataclass(frozen=True)
class TargetModel:
    """The verifier, as far as a conversion needs it.

    Attributes:
        spec: its sizes.
        read_tables: reads its embedding and head; called only for files that hold a copy, or
            have to.
    """

    spec: VerifierSpec
    read_tables: Callable[[], VerifierTables]

    @cached_property
    def tables(self) -> VerifierTables:
        """Embedding and head, read once."""
        return self.read_tables()


@dataclass(frozen=True)
class Body:
    """A drafter between two layouts.

    Attributes:
        drafter: its class, settings and shapes, without weights.
        tensors: its weights, in this project's names.
        config: `config.json` of this project's layout.
    """

    drafter: Drafter[Any]
    tensors: dict[str, Tensor]
    config: dict[str, Any]


def recognise(content: Content) -> str:
    """Return the name of a folder's layout.

    Raises:
        CheckpointError: none is recognised, or several.
    """
    if "speculators_model_type" in content.config:
        return OURS
    known = layouts()
    names = [n for n, own in known.items() if own.recognises(content.config, content.tensors)]
    if len(names) == 1:
        return names[0]
    offers = [f"{OURS} ({SUMMARY})", *(f"{n} ({own.summary})" for n, own in known.items())]
    found = "several layouts" if names else "no known layout"
    raise CheckpointError(f"{content.folder}: {found} recognised; known: {'; '.join(offers)}")


def choose_target(source: str, wanted: str | None) -> str:
    """Return the layout to write: the one asked for, or this project's.

    Raises:
        ConfigError: no such layout.
    """
    known = (OURS, *layouts())
    if wanted is not None and wanted not in known:
        raise ConfigError(
            f"convert.to={wanted}: no such layout:{did_you_mean(wanted, known)} there are "
            f"{', '.join(known)}"
        )
    return wanted or OURS


def read_body(content: Content, source: str, target: TargetModel, wishes: Wishes) -> Body:
    """Read a folder of the layout `source`.

    Raises:
        CheckpointError: a key or tensor is unknown, missing or misshaped, or the drafter was made
            for another verifier.
    """
    if source == OURS:
        return _read_ours(content, target)
    return _read_foreign(content, layouts()[source], target, wishes)


def write_body(
    body: Body, to: str, target: TargetModel, folder: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return `config.json` and tensors of the layout `to`.

    Args:
        body: the drafter.
        to: name of the layout.
        target: the verifier.
        folder: where the drafter was read, for messages.

    Raises:
        CheckpointError: the layout is another algorithm's, or cannot say what the drafter is.
    """
    if to == OURS:
        return body.config, body.tensors
    layout, kind = layouts()[to], body.drafter.speculators_model_type
    if layout.speculators_model_type != kind:
        others = [n for n, own in layouts().items() if own.speculators_model_type == kind]
        raise CheckpointError(
            f"convert.to={to}: holds {layout.speculators_model_type} drafters, this is a {kind} "
            f"drafter; possible: {', '.join(others) or 'none'}"
        )
    with _in_folder(folder):
        config = layout.write(body.drafter.config, body.drafter.spec)
    tensors = dict(body.tensors)
    if layout.stores_head and _HEAD not in tensors:
        tensors[_HEAD] = target.tables.lm_head.to(_dtype(tensors))
    config["dtype"] = _dtype_name(tensors)
    return config, {_there(layout, name): tensor for name, tensor in tensors.items()}


def _read_ours(content: Content, target: TargetModel) -> Body:
    config, folder = content.config, content.folder
    check_verifier(folder, config, target.spec)
    vocabulary = vocabulary_of(content.weights, content.tensors, target.spec.vocab_size)
    check_draft_vocabulary(folder, config, vocabulary)
    check_tokenizer(folder, config, vocabulary, target.spec)
    algorithm = algorithm_of(folder, config)
    settings = algorithm.config_from_serving(config)
    spec = read_drafter_spec(config, target.spec)
    drafter = _empty(algorithm, settings, spec, content, target.spec.vocab_size)
    if unknown := sorted(_unknown(config, drafter.serving_config())):
        raise CheckpointError(
            f"{folder}/config.json: unknown keys {', '.join(unknown)}: what they change is not "
            "known here; remove them if they change no draft"
        )
    expected = drafter.saved_tensors()
    tensors = _without_copies(content, content.tensors, expected, target)
    _check(content, tensors, expected, lambda name: name)
    named = dict(config["speculators_config"])
    named["verifier"] = {**named["verifier"], "name_or_path": target.spec.name_or_path}
    return Body(drafter, tensors, {**config, "speculators_config": named})


def _read_foreign(
    content: Content, layout: Layout[Any], target: TargetModel, wishes: Wishes
) -> Body:
    folder, algorithm = content.folder, algorithm_of(content.folder, _type_of(layout))
    if (folder / MASK_FILE).exists():
        raise CheckpointError(f"{folder / MASK_FILE}: the {layout.name} layout has no such file")
    renamed = {_here(layout, name): tensor for name, tensor in content.tensors.items()}
    tensors = _without_copies(content, renamed, (), target)
    with _in_folder(folder):
        asked, spec = layout.read(content.config, tensors.keys(), target.spec, wishes)
    try:
        settings = algorithm.resolve(asked, spec, [])
    except ConfigError as error:
        raise CheckpointError(f"{folder}/config.json: " + "; ".join(error.problems)) from error
    tensors = dict(_split(tensors, settings))
    named = Content(folder, content.weights, content.config, tensors)
    drafter = _empty(algorithm, settings, spec, named, target.spec.vocab_size)
    config: dict[str, Any] = drafter.serving_config() | {"dtype": _dtype_name(tensors)}
    config[TOKENIZER_KEY] = target.spec.tokenizer_hash
    # How it was trained is not known: only what changes its tensors is kept.
    default, training = type(asked)(), config.pop(TRAINING_KEY, {})
    kept = {k: v for k, v in training.items() if getattr(asked, k) != getattr(default, k)}
    check_config(folder, config, drafter)
    _check(content, tensors, drafter.saved_tensors(), lambda name: _there(layout, name))
    return Body(drafter, tensors, {**config, TRAINING_KEY: kept})


def _empty(
    algorithm: type[Drafter[Any]],
    settings: Any,
    spec: VerifierSpec,
    content: Content,
    vocab_size: int,
) -> Drafter[Any]:
    """Build the drafter without memory: its names and shapes are wanted."""
    vocabulary = vocabulary_of(content.weights, content.tensors, vocab_size)
    table = torch.empty(spec.vocab_size, spec.hidden_size, device="meta")
    with torch.device("meta"):
        return algorithm.build(
            settings,
            spec,
            vocabulary,
            embed_tokens=table,
            lm_head=table,
            generator=torch.Generator("cpu").manual_seed(0),
        )


def _without_copies(
    content: Content,
    tensors: Mapping[str, Tensor],
    expected: Collection[str],
    target: TargetModel,
) -> dict[str, Tensor]:
    """Leave out embedding and head where they are the verifier's own: readers share them.

    Raises:
        CheckpointError: an embedding that is not the verifier's.
    """
    kept = dict(tensors)
    shape = (target.spec.vocab_size, target.spec.hidden_size)
    for name in (_EMBEDDING, _HEAD):
        tensor = tensors.get(name)
        if name in expected or tensor is None or tuple(tensor.shape) != shape:
            continue
        own = target.tables.embed_tokens if name == _EMBEDDING else target.tables.lm_head
        if same_bits(tensor, own.to(tensor.dtype)):
            del kept[name]
        elif name == _EMBEDDING:
            raise CheckpointError(
                f"{content.weights}: {name} is not the embedding of {target.spec.name_or_path}; a "
                "drafter with an embedding of its own cannot be run"
            )
    return kept


def _split(tensors: Mapping[str, Tensor], settings: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors with fused projections taken apart (checkpoint specification, section 6)."""
    queries = settings.num_attention_heads * settings.head_dim
    groups = settings.num_key_value_heads * settings.head_dim
    inner = settings.intermediate_size
    fused = {
        "qkv_proj": {"q_proj": queries, "k_proj": groups, "v_proj": groups},
        "gate_up_proj": {"gate_proj": inner, "up_proj": inner},
    }
    for name, tensor in tensors.items():
        whole = next((part for part in fused if f".{part}." in name), None)
        if whole is None or tensor.shape[0] != sum(fused[whole].values()):
            yield name, tensor
            continue
        rows = tensor.split(list(fused[whole].values()))
        for part, values in zip(fused[whole], rows, strict=True):
            yield name.replace(f".{whole}.", f".{part}."), values


def _check(
    content: Content,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    there: Callable[[str], str],
) -> None:
    """Compare names, shapes and values; messages use the names of the file."""
    found = {there(name): tensor for name, tensor in tensors.items()}
    check_names(content.weights, found, {there(name): t for name, t in expected.items()})
    check_finite(content.weights, found)


def _unknown(
    config: Mapping[str, Any], known: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    for key, value in config.items():
        if key not in known and key not in _IGNORED:
            yield f"{prefix}{key}"
        elif key == "transformer_layer_config" and isinstance(value, Mapping):
            yield from _unknown(value, known[key], f"{key}.")


@contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    """Put the folder before messages about its `config.json`: layouts do not know it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{folder}/{error}") from error


def _type_of(layout: Layout[Any]) -> dict[str, str]:
    return {"speculators_model_type": layout.speculators_model_type}


def _here(layout: Layout[Any], name: str) -> str:
    for there, here in layout.renames.items():
        if name.startswith(there):
            return here + name.removeprefix(there)
    return name


def _there(layout: Layout[Any], name: str) -> str:
    for there, here in layout.renames.items():
        if name.startswith(here):
            return there + name.removeprefix(here)
    return name


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """Return the number format most floating-point tensors have."""
    kinds = Counter(t.dtype for t in tensors.values() if t.is_floating_point())
    return kinds.most_common(1)[0][0] if kinds else torch.float32


def _dtype_name(tensors: Mapping[str, Tensor]) -> str:
    return str(_dtype(tensors)).removeprefix("torch.")

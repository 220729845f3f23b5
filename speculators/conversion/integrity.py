"""What must hold before a folder is called a drafter (checkpoint specification, section 7).

vLLM does not notice missing draft tensors: a file without one serves with an acceptance length
of 1. So names, shapes, values and the configuration are compared here, on the way out and in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speculators.algorithms.base import Drafter
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import CheckpointError
from speculators.verifier.spec import VerifierSpec

CONFIG_FILE = "config.json"
TOKENIZER_KEY = "verifier_tokenizer_sha256"
WEIGHTS_FILE = "model.safetensors"
_MOST_NAMES = 6


def check_config(folder: Path, config: dict[str, Any], drafter: Drafter[Any]) -> None:
    """Hold what every algorithm's `config.json` must say (specification, sections 3 and 7).

    Raises:
        CheckpointError: the configuration contradicts the drafter, or cannot be read back.
    """
    path = folder / CONFIG_FILE
    if config.get("speculators_model_type") != drafter.speculators_model_type:
        raise CheckpointError(
            f"{path}: speculators_model_type is {config.get('speculators_model_type')!r}, "
            f"the drafter is {drafter.speculators_model_type!r}"
        )
    speculators = config.get("speculators_config") or {}
    methods = speculators.get("proposal_methods") or [{}]
    drafted = methods[0].get("speculative_tokens")
    if drafted != drafter.num_draft_tokens:
        raise CheckpointError(
            f"{path}: speculative_tokens is {drafted}, the drafter drafts "
            f"{drafter.num_draft_tokens}"
        )
    if not (speculators.get("verifier") or {}).get("name_or_path"):
        raise CheckpointError(f"{path}: names no verifier (speculators_config.verifier)")
    check_verifier(folder, config, drafter.spec)
    check_draft_vocabulary(folder, config, drafter.vocabulary)
    type(drafter).config_from_serving(config)


def check_verifier(folder: Path, config: dict[str, Any], spec: VerifierSpec) -> None:
    """Hold that `config.json` was made for a verifier of these sizes.

    Raises:
        CheckpointError: another hidden size or vocabulary, or ids outside of it.
    """
    layer = config.get("transformer_layer_config")
    if not isinstance(layer, dict):
        raise CheckpointError(f"{folder / CONFIG_FILE}: has no transformer_layer_config")
    for key, expected in (("hidden_size", spec.hidden_size), ("vocab_size", spec.vocab_size)):
        if layer.get(key) != expected:
            raise CheckpointError(
                f"{folder}: made for a verifier with {key} {layer.get(key)}, but "
                f"{spec.name_or_path} has {expected}; choose the verifier it was trained with"
            )
    mask = config.get("mask_token_id")
    if mask is not None and not 0 <= mask < spec.vocab_size:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: mask_token_id {mask} is outside the verifier's "
            f"{spec.vocab_size} embedding rows"
        )


def check_draft_vocabulary(
    folder: Path, config: dict[str, Any], vocabulary: DraftVocabulary
) -> None:
    """Hold that `config.json` counts the tokens the maps name (absent or null: all of them).

    Raises:
        CheckpointError: the two disagree; vLLM would draft wrong tokens without a word.
    """
    drafted = config.get("draft_vocab_size") or vocabulary.vocab_size
    if drafted != len(vocabulary):
        raise CheckpointError(
            f"{folder}: draft_vocab_size is {drafted} in {CONFIG_FILE}, but the maps in "
            f"{WEIGHTS_FILE} name {len(vocabulary)} tokens"
        )


def check_tokenizer(
    folder: Path, config: dict[str, Any], vocabulary: DraftVocabulary, spec: VerifierSpec
) -> None:
    """Hold that a reduced draft vocabulary was chosen over the verifier's own tokens.

    Raises:
        CheckpointError: another tokenizer; every row of the draft head would mean another token.
    """
    then, now = config.get(TOKENIZER_KEY), spec.tokenizer_hash
    if not vocabulary.is_full and then and now and then != now:
        raise CheckpointError(
            f"{folder}: its draft vocabulary was chosen over another tokenizer (sha256 "
            f"{then[:12]}, that of {spec.name_or_path} is {now[:12]}), so its rows mean other "
            "tokens; choose the verifier it was trained with, or train a new drafter"
        )


def check_complete(path: Path, tensors: Mapping[str, Tensor], drafter: Drafter[Any]) -> None:
    """Hold that a file about to be written has all a server needs and nothing it refuses.

    Raises:
        CheckpointError: every trained parameter, and with a reduced vocabulary the maps and the
            head, must be there; what has no place in the drafter must not.
    """
    needed: dict[str, Tensor] = dict(drafter.trainable_parameters())
    vocabulary = drafter.vocabulary
    if not vocabulary.is_full:
        head = torch.empty(len(vocabulary), drafter.spec.hidden_size, device="meta")
        needed |= {"d2t": vocabulary.d2t, "t2d": vocabulary.t2d, "lm_head.weight": head}
    places = {name for name, _ in chain(drafter.named_parameters(), drafter.named_buffers())}
    allowed = (places - {"d2t", "t2d"}) | needed.keys()
    present = {name: t for name, t in tensors.items() if name in needed}
    _refuse(path, present, needed, [name for name in tensors if name not in allowed])


def check_names(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Hold that a file has exactly the expected tensors, in shape and kind.

    Raises:
        CheckpointError: one line that names every missing, unknown or misshaped tensor.
    """
    _refuse(path, tensors, expected, [name for name in tensors if name not in expected])


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Hold that no floating-point value is NaN or infinite.

    Raises:
        CheckpointError: names the tensors.
    """
    bad = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if bad:
        raise CheckpointError(f"{path}: NaN or infinite values in {_first(bad)}")


def _refuse(
    path: Path,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    unknown: Iterable[str],
) -> None:
    missing = [f"{n} {list(t.shape)}" for n, t in expected.items() if n not in tensors]
    misshaped = [
        f"{n} is {list(t.shape)} {_kind(t)}, must be {list(expected[n].shape)} {_kind(expected[n])}"
        for n, t in tensors.items()
        if n in expected and (t.shape, _kind(t)) != (expected[n].shape, _kind(expected[n]))
    ]
    findings = [
        f"{word}: {_first(names)}"
        for word, names in (
            ("missing", missing),
            ("unknown", sorted(unknown)),
            ("wrong shape", misshaped),
        )
        if names
    ]
    if findings:
        raise CheckpointError(f"{path}: tensors do not fit the drafter; " + "; ".join(findings))


def _kind(tensor: Tensor) -> str:
    """Name what may not change silently; float formats may differ from each other."""
    return "float" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def _first(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")

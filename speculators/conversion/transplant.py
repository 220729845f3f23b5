"""Weights of a drafter for a drafter of another verifier, tokens matched row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from speculators.algorithms.base import Drafter, TokenRows
from speculators.conversion.integrity import WEIGHTS_FILE, check_finite, check_names
from speculators.conversion.layout import read_tensors


@torch.no_grad()
def transplant_weights(
    drafter: Drafter[Any], source: Drafter[Any], folder: Path, tokens: Int[Tensor, "old_vocab"]
) -> dict[str, int]:
    """Overwrite a fresh drafter's weights with those of a checkpoint made for another verifier.

    Weights with a row per token take over the rows of tokens both verifiers have; the others stay
    fresh, and so does a head that was frozen there: its rows were the other verifier's.

    Args:
        drafter: freshly built for the new verifier.
        source: the checkpoint's drafter; its shapes are read, it may lie on the meta device.
        folder: the checkpoint.
        tokens: token of the new verifier for each of the old, -1 where there is none.

    Returns:
        Rows taken over, by name of the weight.

    Raises:
        CheckpointError: files are missing or damaged, or a weight has no place here.
    """
    path = folder / WEIGHTS_FILE
    tensors = read_tensors(path)
    places = drafter.trainable_parameters()
    learned = {name: tensors[name] for name in source.trainable_parameters() if name in tensors}
    check_finite(path, learned)
    by_token = drafter.token_rows()
    check_names(
        path,
        {name: value for name, value in learned.items() if name not in source.token_rows()},
        {name: place for name, place in places.items() if name not in by_token},
    )
    rows = {TokenRows.vocab: tokens, TokenRows.draft: _draft_rows(drafter, source, tokens)}
    copied: dict[str, int] = {}
    for name, place in places.items():
        if name not in by_token:
            place.copy_(learned[name])
        elif name in learned:
            target = rows[by_token[name]]
            kept = (target >= 0).nonzero().flatten()
            place[target[kept]] = learned[name][kept].to(place.dtype)
            copied[name] = len(kept)
    return copied


def _draft_rows(
    drafter: Drafter[Any], source: Drafter[Any], tokens: Int[Tensor, "old_vocab"]
) -> Int[Tensor, "old_draft"]:
    """Return the draft id here of each draft id there, -1 where it cannot be drafted here."""
    target = tokens[source.vocabulary.ids]
    return torch.where(target >= 0, drafter.vocabulary.draft_ids()[target.clamp(min=0)], -1)

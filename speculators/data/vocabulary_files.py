"""A draft vocabulary beside the data: both maps, and what they were built from.

`t2d-<size>.npy` and `d2t-<size>.npy` are valid only together with `draft_vocab-<size>.json`
(draft-vocabulary specification, section 2).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speculators.data.coverage import VocabularyCoverage
from speculators.data.prepared import FREQUENCIES
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import CheckpointError, DataError


def save_vocabulary(
    vocabulary: DraftVocabulary,
    folder: Path,
    coverage: VocabularyCoverage,
    *,
    tokenizer: str,
    data: str,
    forced_ids: Sequence[int],
) -> None:
    """Write the maps and their description; the description last, whole or not at all.

    Args:
        vocabulary: what can be drafted.
        folder: that of the prepared data.
        coverage: its report.
        tokenizer: fingerprint of the tokenizer.
        data: fingerprint of the prepared data.
        forced_ids: tokens that were kept whatever their count.
    """
    t2d, d2t, description = _paths(folder, len(vocabulary))
    np.save(t2d, vocabulary.t2d.numpy())
    np.save(d2t, vocabulary.d2t.numpy())
    content = {
        "draft_vocab_size": len(vocabulary),
        "vocab_size": vocabulary.vocab_size,
        "tokenizer": tokenizer,
        "data": data,
        "token_freq": _hash(folder / FREQUENCIES),
        "forced_ids": list(forced_ids),
        "ids": vocabulary.fingerprint,
        "coverage": dataclasses.asdict(coverage),
    }
    aside = description.with_suffix(".partial")
    aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    aside.rename(description)


def load_vocabulary(folder: Path, size: int) -> DraftVocabulary:
    """Read the maps of a size and check them against their description and the data.

    Raises:
        DataError: a file is missing or damaged, or the data are others than it was built from.
    """
    t2d, d2t, description = _paths(folder, size)
    try:
        content: dict[str, Any] = json.loads(description.read_text(encoding="utf-8"))
        vocabulary = DraftVocabulary.from_maps(
            torch.from_numpy(np.load(d2t)), torch.from_numpy(np.load(t2d))
        )
    except (OSError, ValueError, CheckpointError) as error:
        raise DataError(f"{description}: no draft vocabulary of this size: {error}") from error
    if content.get("ids") != vocabulary.fingerprint:
        raise DataError(f"{description}: describes other maps than {t2d.name} and {d2t.name}")
    if content.get("token_freq") != _hash(folder / FREQUENCIES):
        raise DataError(f"{description}: was built from another {FREQUENCIES}; delete it")
    return vocabulary


def _paths(folder: Path, size: int) -> tuple[Path, Path, Path]:
    names = (f"t2d-{size}.npy", f"d2t-{size}.npy", f"draft_vocab-{size}.json")
    t2d, d2t, description = (folder / name for name in names)
    return t2d, d2t, description


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

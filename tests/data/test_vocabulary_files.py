from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from speculators.data.coverage import coverage_sizes, suggest_size, vocabulary_coverage
from speculators.data.vocabulary import DraftVocabulary, build_vocabulary
from speculators.data.vocabulary_files import load_vocabulary, save_vocabulary
from speculators.errors import DataError

COUNTS = torch.tensor([0, 50, 0, 0, 30, 10, 0, 0, 1, 9])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.save({i: int(c) for i, c in enumerate(COUNTS) if c}, tmp_path / "token_freq.pt")
    return tmp_path


def save(folder: Path, size: int = 4) -> DraftVocabulary:
    vocabulary = build_vocabulary(COUNTS, size, vocab_size=10, num_tokens=10, forced_ids=[9])
    coverage = vocabulary_coverage(vocabulary, COUNTS, 7, {"code": COUNTS})
    save_vocabulary(vocabulary, folder, coverage, tokenizer="t", data="d", forced_ids=[9])
    return vocabulary


def test_files_are_those_of_the_specification(folder: Path) -> None:
    vocabulary = save(folder)
    t2d, d2t = np.load(folder / "t2d-4.npy"), np.load(folder / "d2t-4.npy")
    # The worked example: chosen {9, 1, 5, 4}.
    assert (t2d.dtype, d2t.dtype) == (np.bool_, np.int64)
    assert d2t.tolist() == [1, 3, 3, 6]
    assert np.flatnonzero(t2d).tolist() == (np.arange(4) + d2t).tolist() == [1, 4, 5, 9]
    description = json.loads((folder / "draft_vocab-4.json").read_text())
    assert (description["draft_vocab_size"], description["vocab_size"]) == (4, 10)
    assert description["forced_ids"] == [9]
    assert description["coverage"]["coverage"] == pytest.approx(0.99)
    assert description["coverage"]["slices"] == {"code": pytest.approx(0.99)}
    assert description["ids"] == vocabulary.fingerprint
    loaded = load_vocabulary(folder, 4)
    assert torch.equal(loaded.ids, vocabulary.ids)
    assert loaded.vocab_size == 10


def test_maps_are_checked_when_they_are_read(folder: Path) -> None:
    with pytest.raises(DataError, match=r"draft_vocab-4\.json: no draft vocabulary of this size"):
        load_vocabulary(folder, 4)
    save(folder)
    np.save(folder / "d2t-4.npy", np.array([1, 4, 5, 9]))
    with pytest.raises(DataError, match="d2t must hold offsets"):
        load_vocabulary(folder, 4)
    save(folder)
    other = DraftVocabulary(torch.tensor([0, 1, 2, 3]), 10)
    np.save(folder / "d2t-4.npy", other.d2t.numpy())
    np.save(folder / "t2d-4.npy", other.t2d.numpy())
    with pytest.raises(DataError, match=r"describes other maps than t2d-4\.npy and d2t-4\.npy"):
        load_vocabulary(folder, 4)
    save(folder)
    torch.save({1: 5}, folder / "token_freq.pt")
    with pytest.raises(DataError, match=r"was built from another token_freq\.pt; delete it"):
        load_vocabulary(folder, 4)


def test_sizes_for_shares_and_the_suggestion() -> None:
    sizes = coverage_sizes(COUNTS)
    assert (sizes["90"], sizes["99"], sizes["100"]) == (3, 4, 5)
    counts = torch.zeros(2000, dtype=torch.int64)
    counts[:300] = 1000
    assert suggest_size(counts, 20) == 384
    assert suggest_size(counts[:700], 20) == 0

"""Prepared data on disk: samples memory-mapped, token counts, report (data specification, 5)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from speculators.data.report import DataReport
from speculators.data.types import Sample
from speculators.errors import DataError

MANIFEST = "prepare.json"
FREQUENCIES = "token_freq.pt"
USED = "token_used.npy"
TRAIN, VALIDATION = "train", "val"


class _Ragged:
    """Rows of a list column, read where they lie."""

    def __init__(self, column: Any) -> None:
        self._starts = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])
        self._offsets = [chunk.offsets.to_numpy() for chunk in column.chunks]
        self._values = [chunk.values.to_numpy(zero_copy_only=False) for chunk in column.chunks]

    def __getitem__(self, row: int) -> np.ndarray:
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        low, high = self._offsets[chunk][row - self._starts[chunk] :][:2]
        return self._values[chunk][low:high]


class SampleSet:
    """Samples of one side of the split, memory-mapped.

    Args:
        table: the arrow table of the whole data set.
        rows: which of its rows belong to this set, in order.
    """

    def __init__(self, table: Any, rows: Int[np.ndarray, "sample"]) -> None:
        self._table, self._rows = table, rows
        self._ids, self._masks = _Ragged(table["input_ids"]), _Ragged(table["loss_mask"])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        row = int(self._rows[index])
        return Sample(
            input_ids=torch.from_numpy(self._ids[row].astype(np.int64)),
            loss_mask=torch.from_numpy(self._masks[row].astype(bool)),
            sample_id=self._table["sample_id"][row].as_py(),
            conversation_id=self._table["conversation_id"][row].as_py(),
        )

    @cached_property
    def lengths(self) -> Int[np.ndarray, "sample"]:
        """Tokens of every sample, without reading any."""
        return self._table["seq_len"].to_numpy()[self._rows]

    @cached_property
    def num_supervised(self) -> Int[np.ndarray, "sample"]:
        """Supervised tokens of every sample, without reading any."""
        return self._table["num_supervised"].to_numpy()[self._rows]

    def sample_ids(self) -> list[str]:
        """Return the content addresses, in order."""
        return self._table["sample_id"].take(self._rows).to_pylist()

    def sources(self) -> list[str]:
        """Return the source (slice) of every sample, in order."""
        return self._table["source"].take(self._rows).to_pylist()

    def count_supervised(self, vocab_size: int) -> dict[str, Int[Tensor, "vocab"]]:
        """Return how often each token is supervised, by source; one row is in memory at a time."""
        counts: dict[str, np.ndarray] = {}
        for row, source in zip(self._rows.tolist(), self.sources(), strict=True):
            if source not in counts:
                counts[source] = np.zeros(vocab_size, dtype=np.int64)
            tokens = self._ids[row][self._masks[row].astype(bool)]
            np.add.at(counts[source], tokens, 1)
        return {source: torch.from_numpy(of) for source, of in sorted(counts.items())}

    def select(self, indices: Sequence[int] | Int[np.ndarray, "chosen"]) -> SampleSet:
        """Return the samples at `indices`, as a set."""
        return SampleSet(self._table, self._rows[np.asarray(indices, dtype=np.int64)])


def _table(dataset: Any) -> Any:
    return dataset.data.table


def prompt_of(sample: Sample) -> Int[Tensor, "prompt"]:
    """Return the tokens before the first supervised one: what the verifier answered."""
    return sample.input_ids[: int(sample.loss_mask.int().argmax())]


@dataclass(frozen=True)
class PreparedData:
    """Everything training needs to know of its data.

    Attributes:
        folder: where it lies.
        train: samples to train on.
        validation: samples held out.
        token_counts: how often each token is supervised in `train`.
        used: tokens that occur anywhere, supervised or not, on either side.
        report: what preparation found.
        fingerprint: hash of everything that went in.
        reused: whether it was there already.
    """

    folder: Path
    train: SampleSet
    validation: SampleSet
    token_counts: Int[Tensor, "vocab"]
    used: Bool[Tensor, "vocab"]
    report: DataReport
    fingerprint: str
    reused: bool = False

    def counts_by_source(self) -> dict[str, Int[Tensor, "vocab"]]:
        """Return how often each token is supervised in `train`, by source or slice."""
        return self.train.count_supervised(len(self.token_counts))

    @classmethod
    def load(cls, folder: Path, *, reused: bool = True) -> PreparedData:
        """Open a folder that `prepare` has written.

        Raises:
            DataError: a file is missing or damaged.
        """
        import datasets

        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            table = _table(datasets.load_from_disk(str(folder)))
            frequencies = torch.load(folder / FREQUENCIES, weights_only=True)
            used = torch.from_numpy(np.load(folder / USED))
            report = DataReport.from_dict(manifest["report"])
        except Exception as error:
            # Whatever a library raises over a damaged file, the remedy is the same.
            reason = (str(error).strip().splitlines() or [""])[0]
            raise DataError(
                f"{folder}: prepared data is incomplete or damaged ({type(error).__name__}: "
                f"{reason}); delete the folder to prepare it anew"
            ) from error
        counts = torch.zeros(len(used), dtype=torch.int64)
        counts[list(frequencies)] = torch.tensor(list(frequencies.values()), dtype=torch.int64)
        split = table["split"].to_numpy()
        return cls(
            folder=folder,
            train=SampleSet(table, np.flatnonzero(split == TRAIN)),
            validation=SampleSet(table, np.flatnonzero(split == VALIDATION)),
            token_counts=counts,
            used=used,
            report=report,
            fingerprint=manifest["fingerprint"],
            reused=reused,
        )

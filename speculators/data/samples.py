"""Records -> samples on disk: masks, and one arrow file that grows batch by batch."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from speculators.data.masking import Masked, MaskedRow, Masker
from speculators.data.repeats import Repeats, opening_of
from speculators.data.report import DataReport, SourceCount
from speculators.data.rows import Record, TokenRow
from speculators.data.split import Split, group_prefixes, split_validation
from speculators.data.truncation import Cut, Cutter
from speculators.data.types import Conversation, sample_id_of

_BATCH = 256
_SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int64()),
        "loss_mask": pa.list_(pa.int64()),
        "seq_len": pa.int64(),
        "sample_id": pa.string(),
        "source": pa.string(),
        "truncated": pa.bool_(),
        "num_supervised": pa.int64(),
    }
)
_worker_masker: Masker | None = None


def mask_records(
    records: Iterable[Record], masker: Masker, num_workers: int = 0
) -> Iterator[tuple[Record, Masked]]:
    """Yield every record with its masked rows, in order whatever the number of workers.

    Args:
        records: what to mask.
        masker: renders and tokenises.
        num_workers: processes; 0 works in this one, where one batch is rendered while another is
            tokenised (tokenizers leave Python's lock).
    """
    batches = _batched(records)
    if num_workers == 0:
        with ThreadPoolExecutor(2) as pool:
            mask = partial(_mask_batch, masker)
            yield from _in_order(batches, lambda batch: pool.submit(mask, batch), ahead=2)
        return
    with ProcessPoolExecutor(
        num_workers, get_context("spawn"), initializer=_start_worker, initargs=(masker,)
    ) as pool:
        ahead = 2 * num_workers
        yield from _in_order(batches, lambda batch: pool.submit(_mask_in_worker, batch), ahead)


def _in_order(
    batches: Iterable[Sequence[Record]],
    submit: Callable[[Sequence[Record]], Future[list[Masked]]],
    ahead: int,
) -> Iterator[tuple[Record, Masked]]:
    """Hand out results in the order of the batches, at most `ahead` of them waiting."""
    waiting: deque[tuple[Sequence[Record], Future[list[Masked]]]] = deque()
    for batch in batches:
        waiting.append((batch, submit(batch)))
        if len(waiting) > ahead:
            done, future = waiting.popleft()
            yield from zip(done, future.result(), strict=True)
    for done, future in waiting:
        yield from zip(done, future.result(), strict=True)


def _batched(records: Iterable[Record]) -> Iterator[tuple[Record, ...]]:
    iterator = iter(records)
    while batch := tuple(itertools.islice(iterator, _BATCH)):
        yield batch


def _start_worker(masker: Masker) -> None:
    global _worker_masker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker_masker = masker


def _mask_in_worker(batch: Sequence[Record]) -> list[Masked]:
    assert _worker_masker is not None
    return _mask_batch(_worker_masker, batch)


def _mask_batch(masker: Masker, batch: Sequence[Record]) -> list[Masked]:
    conversations = [r.item for r in batch if isinstance(r.item, Conversation)]
    masked = iter(masker.mask(conversations))
    return [next(masked) if isinstance(r.item, Conversation) else _as_masked(r.item) for r in batch]


def _as_masked(row: TokenRow) -> Masked:
    return Masked((MaskedRow(row.input_ids, row.loss_mask),))


class SampleIndex:
    """Who each sample is and how it begins: all that decides about its side.

    Attributes:
        sample_ids: content addresses.
        conversation_ids: None where the source names none.
        openings: hash of each sample up to the end of its first answer.
    """

    def __init__(self) -> None:
        self.sample_ids: list[str] = []
        self.conversation_ids: list[str | None] = []
        self.openings: list[bytes] = []

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.sample_ids)

    def add(
        self, record: Record, ids: Int[np.ndarray, "token"], mask: Bool[np.ndarray, "token"]
    ) -> str:
        """Note the next sample and return its content address."""
        self.sample_ids.append(sample_id_of(ids))
        self.conversation_ids.append(record.item.conversation_id)
        self.openings.append(opening_of(ids, mask))
        return self.sample_ids[-1]

    @property
    def unnamed(self) -> list[int]:
        """Numbers of the samples whose source names no conversation."""
        return [i for i, name in enumerate(self.conversation_ids) if name is None]

    def names(self, unnamed: Iterable[Any]) -> list[str]:
        """Return a conversation for every sample; those without one are grouped by prefix.

        Args:
            unnamed: tokens of the samples whose source names none, in order.
        """
        names = [name or "" for name in self.conversation_ids]
        rows = [np.array(ids, dtype=">u4").tobytes() for ids in unnamed]
        numbers = self.unnamed
        for number, opener in zip(numbers, group_prefixes(rows), strict=True):
            names[number] = self.sample_ids[numbers[opener]]
        return names

    def split(self, names: Sequence[str], repeats: Repeats, *, fraction: float, seed: int) -> Split:
        """Divide the samples into training and validation.

        Args:
            names: conversation of each sample.
            repeats: what was left out still says which conversations begin alike.
            fraction: share of the conversations that validate.
            seed: of the run.

        Raises:
            DataError: there is nothing to split, or all conversations begin alike.
        """
        links = (self.sample_ids, self.openings)
        return split_validation(names, *links, fraction=fraction, seed=seed, repeats=repeats.links)


class SampleWriter:
    """Counts and writes samples.

    Args:
        path: arrow file to write.
        cutter: fits rows to the sequence length.
        report: counts are added to it.
        repeats: decides about samples that were there before.

    Attributes:
        index: of what was written.
    """

    def __init__(self, path: Path, cutter: Cutter, report: DataReport, repeats: Repeats) -> None:
        self._cutter, self._report, self._repeats = cutter, report, repeats
        self._columns: dict[str, list] = {name: [] for name in _SCHEMA.names}
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_stream(self._sink, _SCHEMA)
        self.index = SampleIndex()

    def add(self, record: Record, masked: Masked) -> None:
        """Write the rows of one record and count what is left out."""
        for cut in self._cutter.cut(record, masked):
            self._write(record, cut)

    def _write(self, record: Record, cut: Cut) -> None:
        ids, mask, report = cut.input_ids, cut.loss_mask, self._report
        if self._repeats.leaves_out(record, ids, mask):
            return
        sample_id, supervised = self.index.add(record, ids, mask), int(mask.sum())
        source = record.item.source
        values = (
            ids,
            mask.astype(np.int64),
            len(ids),
            sample_id,
            source,
            cut.is_truncated,
            supervised,
        )
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)
        report.num_samples += 1
        report.num_tokens += len(ids)
        report.num_supervised += supervised
        report.num_fully_supervised += cut.is_unmasked
        count = report.sources.setdefault(source, SourceCount())
        count.samples += 1
        count.tokens += len(ids)
        count.supervised += supervised
        count.truncated += cut.is_truncated
        if len(self._columns["seq_len"]) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._columns["seq_len"]:
            self._writer.write_batch(pa.record_batch(self._columns, schema=_SCHEMA))
            self._columns = {name: [] for name in _SCHEMA.names}

    def close(self) -> None:
        """Write what is left and close the file."""
        self._flush()
        self._writer.close()
        self._sink.close()

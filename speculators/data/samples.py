"""Records -> samples on disk: masks, truncation, one arrow file that grows batch by batch."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from speculators.config.schema import DataConfig, Truncation
from speculators.data.masking import Masked, MaskedRow, Masker
from speculators.data.report import DataReport, SourceCount
from speculators.data.roles import add_roles
from speculators.data.rows import Record, TokenRow
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
    """Yield every record with its masked rows, in order whatever the number of workers."""
    batches = _batched(records)
    if num_workers == 0:
        for batch in batches:
            yield from zip(batch, _mask_batch(masker, batch), strict=True)
        return
    with ProcessPoolExecutor(
        num_workers, get_context("spawn"), initializer=_start_worker, initargs=(masker,)
    ) as pool:
        waiting: deque[tuple[Sequence[Record], Future[list[Masked]]]] = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(_mask_in_worker, batch)))
            if len(waiting) > 2 * num_workers:
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


class SampleWriter:
    """Cuts, counts and writes samples.

    Args:
        path: arrow file to write.
        config: truncation policy and smallest number of supervised tokens.
        sequence_length: longest sample, in tokens.
        report: counts are added to it.

    Attributes:
        lengths: tokens of every sample.
        sample_ids: content addresses.
        conversation_ids: None where the source names none.
    """

    def __init__(
        self, path: Path, config: DataConfig, sequence_length: int, report: DataReport
    ) -> None:
        self._config, self._limit, self._report = config, sequence_length, report
        self._columns: dict[str, list] = {name: [] for name in _SCHEMA.names}
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_stream(self._sink, _SCHEMA)
        self._seen: set[str] = set()
        self.lengths: list[int] = []
        self.sample_ids: list[str] = []
        self.conversation_ids: list[str | None] = []

    def add(self, record: Record, masked: Masked) -> None:
        """Write the rows of one record and count what is left out."""
        report = self._report
        if masked.refusal is not None:
            detail = f": {masked.detail}" if masked.detail else ""
            report.drop(masked.refusal, f"{record.origin}: {masked.refusal}{detail}")
        for line in masked.unstable:
            report.drop("unstable turn", f"{record.origin}: unstable {line}")
        kept = [self._add_row(record, row) for row in masked.rows]
        report.num_conversations += any(kept)
        report.num_split += len(kept) > 1

    def _add_row(self, record: Record, row: MaskedRow) -> bool:
        ids, mask, report = row.input_ids, row.loss_mask, self._report
        add_roles(report.roles, row.roles)
        report.num_open_turns += row.num_open_turns
        surplus = len(ids) - self._limit
        if surplus > 0 and self._config.truncation is Truncation.drop:
            report.num_lost_tokens += len(ids)
            report.drop("longer than the sequence", f"{record.origin}: {len(ids)} tokens")
            return False
        ids, mask = ids[: self._limit], mask[: self._limit]
        supervised = int(mask.sum())
        if supervised < self._config.min_supervised_tokens:
            cut = " after truncation" if surplus > 0 else ""
            reason = f"fewer than {self._config.min_supervised_tokens} supervised tokens{cut}"
            report.drop(reason, f"{record.origin}: {supervised} supervised tokens{cut}")
            return False
        report.num_truncated += surplus > 0
        report.num_lost_tokens += max(0, surplus)
        self._write(record, ids, mask, truncated=surplus > 0)
        return True

    def _write(
        self,
        record: Record,
        ids: Int[np.ndarray, "token"],
        mask: Bool[np.ndarray, "token"],
        *,
        truncated: bool,
    ) -> None:
        sample_id, supervised = sample_id_of(ids.tolist()), int(mask.sum())
        source, report = record.item.source, self._report
        values = (ids, mask.astype(np.int64), len(ids), sample_id, source, truncated, supervised)
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)
        self.lengths.append(len(ids))
        self.sample_ids.append(sample_id)
        self.conversation_ids.append(record.item.conversation_id)
        report.num_duplicates += sample_id in self._seen
        self._seen.add(sample_id)
        report.num_samples += 1
        report.num_tokens += len(ids)
        report.num_supervised += supervised
        report.num_fully_supervised += supervised == len(ids)
        count = report.sources.setdefault(source, SourceCount())
        count.samples += 1
        count.tokens += len(ids)
        count.supervised += supervised
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

"""Packed rows with their hidden states, in an order that any run can repeat and resume."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from speculators.data.packing import Rows, filled_share, pack
from speculators.data.prepared import SampleSet
from speculators.data.types import HostRow, PackedBatch, Sample
from speculators.hidden_states.types import HiddenStates, HiddenStateSource
from speculators.modules.transfer import send


class RowLoader:
    """Delivers the packed rows of an epoch.

    Which samples stand in which row depends on (samples, sequence length, seed, epoch) alone,
    never on hidden states: a sample without states leaves its place empty.

    Args:
        samples: what to pack.
        source: where hidden states come from.
        sequence_length: tokens per row.
        num_aux_layers: target layers per token.
        hidden_size: width of a state.
        seed: of the run.
        shuffle: False gives the same rows in every epoch (validation).
        rows_ahead: rows prepared in a background thread while the caller works; 0 does
            everything in the caller's thread.
        pin_memory: lay rows into memory a GPU can copy from while it works; for states that come
            on the host.
    """

    def __init__(
        self,
        samples: SampleSet,
        source: HiddenStateSource,
        *,
        sequence_length: int,
        num_aux_layers: int,
        hidden_size: int,
        seed: int,
        shuffle: bool = True,
        rows_ahead: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self._samples, self._source = samples, source
        self._length, self._layers, self._hidden = sequence_length, num_aux_layers, hidden_size
        self._seed, self._shuffle, self._ahead = seed, shuffle, rows_ahead
        self._pin = pin_memory
        self._dtype, self._device = torch.float32, torch.device("cpu")
        self._packed: tuple[int, Rows] | None = None
        self._asked: deque[list[Sample]] = deque()

    def rows_in_epoch(self, epoch: int) -> int:
        """Return the number of rows."""
        return len(self._rows(epoch))

    def filled_share(self, epoch: int) -> float:
        """Return the share of places that hold a token."""
        return filled_share(self._rows(epoch), self._samples.lengths, self._length)

    @property
    def fingerprint(self) -> str:
        """Hash of everything the order of rows depends on; equal on resume or not resumable."""
        state = [self._length, self._seed, self._shuffle, *self._samples.sample_ids()]
        return hashlib.sha256("/".join(map(str, state)).encode()).hexdigest()

    def gauges(self) -> Mapping[str, float]:
        """Return how the source of hidden states stands now; see `HiddenStateSource.gauges`."""
        return self._source.gauges()

    def advice(self) -> str:
        """Return why rows are waited for and what to change; see `HiddenStateSource.advice`."""
        return self._source.advice()

    def awaited(self) -> Sequence[str]:
        """Return the samples of the row whose hidden states are waited for; of any thread."""
        try:
            return [sample.sample_id for sample in self._asked[0]]
        except IndexError:  # it has come meanwhile
            return []

    def _rows(self, epoch: int) -> Rows:
        key = epoch if self._shuffle else 0
        if self._packed is None or self._packed[0] != key:
            rows = pack(
                self._samples.lengths,
                self._length,
                seed=self._seed,
                epoch=epoch,
                shuffle=self._shuffle,
            )
            self._packed = (key, rows)
        return self._packed[1]

    def iterate(
        self, epoch: int, first_row: int = 0, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[PackedBatch]:
        """Yield row `first_row + rank` of an epoch, then every `world_size`-th.

        Nothing else is fetched. Every rank gets the same number of rows: one of padding stands
        where a rank has no row any more.

        Raises:
            HiddenStateError: states cannot be had and policy forbids going on.
        """
        rows = self._rows(epoch)[first_row:]
        batches = self._batches(rows.of_rank(rank, world_size))
        return batches if self._ahead == 0 else _in_background(batches, self._ahead)

    def _batches(self, rows: Rows) -> Iterator[PackedBatch]:
        asked = self._asked = deque()

        def groups() -> Iterator[Sequence[Sample]]:
            for row in rows:
                group = [self._samples[int(index)] for index in row]
                asked.append(group)
                yield group

        for states in self._source.stream(groups()):
            yield self._collate(asked.popleft(), states)

    def _collate(self, samples: list[Sample], states: Sequence[HiddenStates | None]) -> PackedBatch:
        present = [(s, h) for s, h in zip(samples, states, strict=True) if h is not None]
        if present:
            last = present[0][1].last
            self._dtype, self._device = last.dtype, last.device
        return collate(
            present,
            self._length,
            aux=self._empty(self._length, self._layers, self._hidden),
            last=self._empty(self._length, self._hidden),
        )

    def _empty(self, *shape: int) -> Tensor:
        pin = self._pin and self._device.type == "cpu"
        return torch.empty(shape, dtype=self._dtype, device=self._device, pin_memory=pin)


def collate(
    samples: Sequence[tuple[Sample, HiddenStates]],
    sequence_length: int,
    *,
    aux: Float[Tensor, "sequence aux_layer hidden"],
    last: Float[Tensor, "sequence hidden"],
) -> PackedBatch:
    """Lay samples one after another into a row; without samples the row is all padding.

    Args:
        samples: what to pack, in order.
        sequence_length: tokens of the row.
        aux: filled in place: states, then zeros; what it holds before does not matter.
        last: the same.
    """
    device = last.device
    input_ids = torch.zeros(sequence_length, dtype=torch.int64)
    loss_mask = torch.zeros(sequence_length, dtype=torch.bool)
    document_ids = torch.full((sequence_length,), -1, dtype=torch.int64)
    position_ids = torch.zeros(sequence_length, dtype=torch.int64)
    start = 0
    for document, (sample, states) in enumerate(samples):
        place = slice(start, start + len(sample))
        input_ids[place] = sample.input_ids
        loss_mask[place] = sample.loss_mask
        document_ids[place] = document
        position_ids[place] = torch.arange(len(sample))
        aux[place] = states.aux
        last[place] = states.last
        start = place.stop
    aux[start:] = 0
    last[start:] = 0
    integers = HostRow(input_ids, loss_mask, document_ids, position_ids)
    return PackedBatch(
        input_ids=send(input_ids, device),
        loss_mask=send(loss_mask, device),
        document_ids=send(document_ids, device),
        position_ids=send(position_ids, device),
        aux=aux,
        last=last,
        sample_ids=tuple(sample.sample_id for sample, _ in samples),
        host=None if device.type == "cpu" else integers,
    )


def _in_background(batches: Iterator[PackedBatch], ahead: int) -> Iterator[PackedBatch]:
    """Run an iterator in a thread, at most `ahead` items before its consumer.

    Errors reach the consumer; a consumer that stops early stops the thread.
    """
    ready: queue.Queue[tuple[PackedBatch | None, BaseException | None]] = queue.Queue(ahead)
    stop = threading.Event()
    num_threads = torch.get_num_threads()

    def put(item: PackedBatch | None, error: BaseException | None = None) -> None:
        while not stop.is_set():
            try:
                return ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        # The number of threads is a setting of each thread, and results may depend on it.
        torch.set_num_threads(num_threads)
        try:
            for batch in batches:
                put(batch)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(None, error)
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=work, name="rows", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            if batch is None:
                return
            yield batch
    finally:
        stop.set()
        thread.join()

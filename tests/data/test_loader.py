from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from speculators.data.loader import RowLoader
from speculators.data.packing import pack
from speculators.data.prepared import SampleSet
from speculators.data.types import PackedBatch, sample_id_of
from speculators.errors import HiddenStateError
from speculators.hidden_states.types import HiddenStates, Tokens

LAYERS, HIDDEN, LENGTH = 2, 3, 32


class Source:
    """States that spell the token they belong to; remembers what was asked for."""

    def __init__(self, missing: set[str] | None = None, fail_at: int | None = None) -> None:
        self.missing, self.fail_at = missing or set(), fail_at
        self.asked: list[str] = []

    def start(self, sample_ids: Collection[str]) -> None:
        pass

    def stream(self, groups: Iterable[Sequence[Tokens]]) -> Iterator[list[HiddenStates | None]]:
        for number, group in enumerate(groups):
            if number == self.fail_at:
                raise HiddenStateError("the server is gone")
            self.asked += [sample.sample_id for sample in group]
            yield [self._states(sample) for sample in group]

    def gauges(self) -> dict[str, float]:
        return {"left_out": len(self.missing)}

    def advice(self) -> str:
        return "miss fewer"

    def _states(self, sample: Tokens) -> HiddenStates | None:
        if sample.sample_id in self.missing:
            return None
        ids = sample.input_ids.to(torch.bfloat16)
        return HiddenStates(
            aux=ids[:, None, None].repeat(1, LAYERS, HIDDEN), last=ids[:, None].repeat(1, HIDDEN)
        )

    def close(self) -> None:
        pass


@pytest.fixture
def samples() -> SampleSet:
    import pyarrow as pa

    generator = np.random.default_rng(0)
    ids = [generator.integers(1, 100, n).tolist() for n in generator.integers(2, LENGTH, 40)]
    table = pa.table(
        {
            "input_ids": pa.array(ids, pa.list_(pa.int64())),
            "loss_mask": pa.array([[i % 2 for i in row] for row in ids], pa.list_(pa.int64())),
            "seq_len": [len(row) for row in ids],
            "sample_id": [sample_id_of(row) for row in ids],
            "conversation_id": [str(i) for i in range(len(ids))],
        }
    )
    return SampleSet(table, np.arange(len(ids)))


def loader(samples: SampleSet, source: Source, **settings: int | bool) -> RowLoader:
    settings = {"seed": 1, **settings}
    return RowLoader(
        samples,
        source,
        sequence_length=LENGTH,
        num_aux_layers=LAYERS,
        hidden_size=HIDDEN,
        **settings,  # type: ignore[arg-type]
    )


def assert_equal(a: Sequence[PackedBatch], b: Sequence[PackedBatch]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.sample_ids == other.sample_ids
        for name in ("input_ids", "loss_mask", "document_ids", "position_ids", "aux", "last"):
            assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_rows_hold_the_packed_samples_and_their_states(samples: SampleSet, ahead: int) -> None:
    rows = pack(samples.lengths, LENGTH, seed=1, epoch=4)
    load = loader(samples, Source(), rows_ahead=ahead)
    batches = list(load.iterate(4))
    assert len(batches) == load.rows_in_epoch(4) == len(rows)
    for row, batch in zip(rows, batches, strict=True):
        inside = [samples[int(i)] for i in row]
        size = sum(map(len, inside))
        assert batch.sample_ids == tuple(sample.sample_id for sample in inside)
        assert batch.input_ids[:size].equal(torch.cat([s.input_ids for s in inside]))
        assert batch.loss_mask[:size].equal(torch.cat([s.loss_mask for s in inside]))
        expected = torch.cat([torch.full((len(s),), i) for i, s in enumerate(inside)])
        assert batch.document_ids[:size].equal(expected)
        assert batch.position_ids[:size].equal(torch.cat([torch.arange(len(s)) for s in inside]))
        assert batch.aux.dtype == batch.last.dtype == torch.bfloat16
        assert batch.last.equal(batch.input_ids.to(torch.bfloat16)[:, None].repeat(1, HIDDEN))
        assert batch.aux.equal(batch.last[:, None].repeat(1, LAYERS, 1))
        assert (batch.document_ids[size:] == -1).all()
        for name in ("input_ids", "loss_mask", "position_ids"):
            assert not getattr(batch, name)[size:].any()


def test_resuming_in_an_epoch_fetches_only_what_is_left(samples: SampleSet) -> None:
    whole = list(loader(samples, Source()).iterate(2))
    source = Source()
    rest = list(loader(samples, source).iterate(2, first_row=5))
    assert_equal(rest, whole[5:])
    assert source.asked == [name for batch in whole[5:] for name in batch.sample_ids]


def test_epochs_differ_and_validation_rows_do_not(samples: SampleSet) -> None:
    train = loader(samples, Source())
    first, second = list(train.iterate(0)), list(train.iterate(1))
    assert [b.sample_ids for b in first] != [b.sample_ids for b in second]
    assert_equal(list(train.iterate(0)), first)
    fixed = loader(samples, Source(), shuffle=False)
    assert_equal(list(fixed.iterate(0)), list(fixed.iterate(1)))


def test_samples_without_states_leave_their_place_empty(samples: SampleSet) -> None:
    whole = list(loader(samples, Source()).iterate(0))
    several = next(i for i, batch in enumerate(whole) if len(batch.sample_ids) > 1)
    empty = several + 1
    missing = {whole[several].sample_ids[0], *whole[empty].sample_ids}
    batches = list(loader(samples, Source(missing)).iterate(0))
    assert batches[several].sample_ids == whole[several].sample_ids[1:]
    assert batches[empty].sample_ids == ()
    assert (batches[empty].document_ids == -1).all()
    assert not batches[empty].last.any()
    assert batches[empty].last.dtype == torch.bfloat16
    assert_equal(batches[empty + 1 :], whole[empty + 1 :])


@pytest.mark.parametrize("ahead", [0, 2])
def test_errors_reach_the_consumer(samples: SampleSet, ahead: int) -> None:
    rows = loader(samples, Source(fail_at=2), rows_ahead=ahead).iterate(0)
    next(rows)
    next(rows)
    with pytest.raises(HiddenStateError, match="the server is gone"):
        next(rows)


def test_consumer_that_stops_early_stops_the_thread(samples: SampleSet) -> None:
    before = threading.active_count()
    source = Source()
    rows = loader(samples, source, rows_ahead=1).iterate(0)
    next(rows)
    assert isinstance(rows, Iterator)
    rows.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert len(source.asked) < len(samples)


def test_whoever_waits_is_told_for_which_samples(samples: SampleSet) -> None:
    source, asked, here = Source(), threading.Event(), threading.Event()
    stream = source.stream

    def late(groups: Iterable[Sequence[Tokens]]) -> Iterator[list[HiddenStates | None]]:
        for number, states in enumerate(stream(groups)):
            if number == 2:
                asked.set()
                assert here.wait(10)
            yield states

    source.stream = late  # type: ignore[method-assign]
    rows = loader(samples, source, rows_ahead=1)
    assert rows.awaited() == []
    taken = rows.iterate(0)
    next(taken)
    next(taken)
    assert asked.wait(10)
    awaited = rows.awaited()
    here.set()
    assert tuple(awaited) == next(taken).sample_ids


def test_fingerprint_follows_samples_length_and_seed(samples: SampleSet) -> None:
    first = loader(samples, Source()).fingerprint
    assert first == loader(samples, Source()).fingerprint
    assert first != loader(samples, Source(), seed=2).fingerprint
    assert first != loader(samples, Source(), shuffle=False).fingerprint
    assert first != loader(samples.select(range(39)), Source()).fingerprint


def test_filled_share(samples: SampleSet, tmp_path: Path) -> None:
    load = loader(samples, Source())
    expected = samples.lengths.sum() / (load.rows_in_epoch(0) * LENGTH)
    assert load.filled_share(0) == pytest.approx(expected)


def test_ranks_share_an_epoch_from_any_row_on(samples: SampleSet) -> None:
    load = loader(samples, Source())
    whole = [batch.sample_ids for batch in load.iterate(1)]
    parts = [[b.sample_ids for b in load.iterate(1, 1, rank=r, world_size=2)] for r in range(2)]
    assert len(parts[0]) == len(parts[1])
    together = [ids for pair in zip(*parts, strict=True) for ids in pair]
    assert together[: len(whole) - 1] == whole[1:]
    assert all(ids == () for ids in together[len(whole) - 1 :])

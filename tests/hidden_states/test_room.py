"""A store never holds more than it may, and nobody loses what is needed next."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from hidden_states.tables import TableModel, make_identity, make_sample, states_of
from speculators.config.schema.hidden_states import OnGenerate, OnMissing
from speculators.data.types import Sample
from speculators.hidden_states.embedded import EmbeddedSource
from speculators.hidden_states.offline import OfflineSource
from speculators.hidden_states.store import HiddenStateStore
from speculators.hidden_states.usage import StoreFullError

SAMPLES = [make_sample(*range(i, i + 6)) for i in range(1, 41)]


def open_store(path: Path, max_bytes: int | None = None) -> HiddenStateStore:
    return HiddenStateStore.open(path, make_identity(), create=True, max_bytes=max_bytes)


def put(store: HiddenStateStore, sample: Sample) -> None:
    store.put(sample, states_of(sample.input_ids, (1, 3)))


def put_all(store: HiddenStateStore, samples: list[Sample]) -> None:
    for sample in samples:
        put(store, sample)


def on_disk(path: Path) -> int:
    return sum(p.stat().st_size for p in path.glob("??/*.safetensors"))


@pytest.fixture(scope="module")
def size(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes of one file, with the room its header is given before it is written."""
    path = tmp_path_factory.mktemp("size")
    put(open_store(path), SAMPLES[0])
    return on_disk(path) + 2048


def test_bytes_are_counted_as_they_are(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for sample in [*SAMPLES[:5], SAMPLES[0]]:
        put(store, sample)
    assert store.num_bytes == on_disk(tmp_path) > 0
    store.quarantine(SAMPLES[1].sample_id, "for a test")
    assert store.num_bytes == on_disk(tmp_path)


def test_a_count_that_a_killed_writer_left_is_made_anew(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    put(store, SAMPLES[0])
    (tmp_path / ".usage").write_text("99999999")
    other = open_store(tmp_path)
    assert other.num_bytes == 99999999  # somebody may be writing
    other.close()
    store.close()
    assert open_store(tmp_path).num_bytes == on_disk(tmp_path)


def test_without_a_reader_nothing_is_removed(tmp_path: Path, size: int) -> None:
    store = open_store(tmp_path, 3 * size)
    with pytest.raises(StoreFullError, match=r"hidden_states\.max_bytes=.*nobody has used yet"):
        put_all(store, SAMPLES)
    kept = len(list(store.sample_ids()))
    assert kept >= 3
    assert on_disk(tmp_path) == store.num_bytes <= 3 * size
    put_again = open_store(tmp_path, 30 * size)
    put(put_again, SAMPLES[30])
    assert SAMPLES[30].sample_id in store


def test_room_is_made_behind_a_reader_oldest_first(tmp_path: Path, size: int) -> None:
    store = open_store(tmp_path, 4 * size)
    reader = store.reader([s.sample_id for s in SAMPLES], gives_up=True)
    assert reader is not None
    for i, sample in enumerate(SAMPLES[:3]):
        put(store, sample)
        os.utime(store.path_of(sample.sample_id), (1000 + i, 1000 + i))
    reader.needs([s.sample_id for s in SAMPLES])
    reader.done([SAMPLES[0].sample_id, SAMPLES[1].sample_id])
    for sample in SAMPLES[3:]:
        if SAMPLES[0].sample_id not in store:
            break
        put(store, sample)
    assert SAMPLES[1].sample_id in store
    assert SAMPLES[2].sample_id in store
    assert store.num_removed == 1
    # In the next epoch the same sample is needed once more, and stays.
    reader.needs([SAMPLES[1].sample_id])
    with pytest.raises(StoreFullError):
        put_all(store, SAMPLES[5:])
    assert SAMPLES[1].sample_id in store
    assert on_disk(tmp_path) <= 4 * size


def test_what_another_reader_has_not_used_stays(tmp_path: Path, size: int) -> None:
    store = open_store(tmp_path, 3 * size)
    ids = [s.sample_id for s in SAMPLES]
    fast, slow = (open_store(tmp_path).reader(ids, gives_up=True) for _ in range(2))
    assert fast is not None
    assert slow is not None
    put(store, SAMPLES[0])
    fast.done(ids[:1])
    with pytest.raises(StoreFullError):
        put_all(store, SAMPLES[1:])
    assert ids[0] in store
    slow.done(ids[:1])
    put(store, SAMPLES[20])
    assert ids[0] not in store


def test_a_reader_without_a_verifier_gives_up_nothing(tmp_path: Path, size: int) -> None:
    store = open_store(tmp_path, 3 * size)
    put(store, SAMPLES[0])
    source = OfflineSource(open_store(tmp_path), OnMissing.error)
    source.start([SAMPLES[0].sample_id])
    other = store.reader(None, gives_up=True)
    assert other is not None
    other.done([s.sample_id for s in SAMPLES])
    for sample in SAMPLES:
        put(store, sample)
        other.done([sample.sample_id])
    assert next(source.stream([[SAMPLES[0]]]))[0] is not None
    source.close()
    put(store, SAMPLES[0])
    for sample in SAMPLES[1:]:
        put(store, sample)
    assert SAMPLES[0].sample_id not in store


def _read_and_die(path: str) -> None:
    reader = open_store(Path(path)).reader(None, gives_up=False)
    assert reader is not None
    reader.needs([s.sample_id for s in SAMPLES])
    os._exit(9)


def test_the_needs_of_the_dead_are_forgotten(tmp_path: Path, size: int) -> None:
    process = multiprocessing.get_context("fork").Process(target=_read_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert len(list((tmp_path / ".readers").iterdir())) == 1
    store = open_store(tmp_path, 3 * size)
    reader = store.reader(None, gives_up=True)
    assert reader is not None
    for sample in SAMPLES:
        put(store, sample)
        reader.done([sample.sample_id])
    assert store.num_removed > 0
    reader.close()
    assert list((tmp_path / ".readers").iterdir()) == []


def test_a_full_disk_is_freed_behind_the_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speculators.hidden_states import store as module

    store, original = open_store(tmp_path), module.save_file
    reader = store.reader(None, gives_up=True)
    assert reader is not None
    put(store, SAMPLES[0])

    def full(*args: object, **options: object) -> None:
        if SAMPLES[0].sample_id in store:
            raise OSError(28, "No space left on device")
        original(*args, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(StoreFullError, match="No space left"):
        put(store, SAMPLES[1])
    reader.done([SAMPLES[0].sample_id])
    put(store, SAMPLES[1])
    assert list(store.sample_ids()) == [SAMPLES[1].sample_id]
    assert store.num_bytes == on_disk(tmp_path)


def test_training_in_a_small_store_sees_the_same_states(tmp_path: Path, size: int) -> None:
    model = TableModel()
    limit = 6 * size
    source = EmbeddedSource(
        model,
        (1, 3),
        store=open_store(tmp_path, limit),
        on_generate=OnGenerate.cache,
    )
    source.start([s.sample_id for s in SAMPLES])
    for order in (SAMPLES, SAMPLES[::-1]):
        for sample, states in zip(order, source.stream([s] for s in order), strict=True):
            assert states[0] is not None
            assert torch.equal(states[0].last, states_of(sample.input_ids, (1, 3)).last)
            assert on_disk(tmp_path) <= limit
    assert source.counts.stored > 0
    assert source.counts.generated + source.counts.stored == 2 * len(SAMPLES)
    source.close()


def test_filling_for_others_stops_when_there_is_no_room(tmp_path: Path, size: int) -> None:
    source = EmbeddedSource(
        TableModel(),
        (1, 3),
        store=open_store(tmp_path, 3 * size),
        on_generate=OnGenerate.cache,
        must_keep=True,
    )
    source.start([s.sample_id for s in SAMPLES])
    with pytest.raises(StoreFullError):
        list(source.stream([s] for s in SAMPLES))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_store_that_may_only_be_read_is_read(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(open_store(tmp_path), SAMPLES[0])
    original = os.open

    def guarded(path: object, flags: int, *rest: int, **options: int) -> int:
        if flags & (os.O_CREAT | os.O_RDWR):
            raise OSError(number, "no writing here", str(path))
        return original(path, flags, *rest, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(os, "open", guarded)
    source = OfflineSource(open_store(tmp_path), OnMissing.error)
    source.start([SAMPLES[0].sample_id])
    assert next(source.stream([[SAMPLES[0]]]))[0] is not None
    assert source.gauges()["store_bytes"] == 0
    source.close()

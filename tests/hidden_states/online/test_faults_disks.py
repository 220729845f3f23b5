"""Faults of disks and processes: wait, go on, or stop with a remedy; no half file is ever seen."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from hidden_states.online.reliability import proves
from hidden_states.online.test_faults import equal
from hidden_states.online.toy import (
    collect,
    leftovers,
    once_said,
    rows,
    store_opener,
)
from speculators.config.schema.hidden_states import OnGenerate
from speculators.errors import HiddenStateOutageError
from speculators.hidden_states import store as store_module
from speculators.testing.faults import Fault, FaultKind

K = FaultKind


@proves("the disk of the server's folder is full", "waits until files come again; nothing lost")
def test_a_full_disk_at_the_server_is_waited_out(serve, open_source, truth, caplog):
    server, samples = serve(), rows(30)
    source = open_source(server)
    source.start(["any"])
    server.faults.add(Fault(K.missing_file), count=None)
    said = "the server cannot write files: disk full or no permission?"
    with once_said(caplog, said, server.faults.clear):
        assert equal(collect(source, samples), truth(samples))
    assert "GiB free" in caplog.text


@proves(
    "the disk of the server's folder stays full",
    "stops after `outage_timeout_seconds`, with the room that is left there",
)
def test_a_disk_at_the_server_that_stays_full_ends_the_run(serve, open_source):
    server = serve()
    source = open_source(server, fetch={"outage_timeout_seconds": 0.3})
    source.start(["any"])
    server.faults.add(Fault(K.missing_file), count=None)
    text = r"cannot write files: disk full or no permission\? .*GiB free"
    with pytest.raises(HiddenStateOutageError, match=text):
        collect(source, rows(4))


def _full(*_args, **_options):
    raise OSError(errno.ENOSPC, "No space left on device")


@proves("the disk of the store is full while training", "goes on without keeping; says how many")
def test_training_goes_on_beside_a_full_store(
    serve, open_source, truth, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(store_module, "save_file", _full)
    samples, folder = rows(10), tmp_path / "store"
    source = open_source(serve(), store_path=str(folder), on_generate=OnGenerate.cache)
    assert equal(collect(source, samples), truth(samples))
    assert source.gauges()["unkept"] == 10
    source.close()
    assert "10 samples were used but not kept: no room" in caplog.text
    assert list(folder.rglob("*.safetensors")) == list(folder.rglob(".writing-*")) == []


@proves(
    "the disk of the store is full while extracting",
    "pauses until there is room; stops after `outage_timeout_seconds`",
)
def test_extraction_waits_for_room(serve, open_source, truth, tmp_path, monkeypatch, caplog):
    original, samples = store_module.save_file, rows(8)
    options = {"store_path": str(tmp_path / "store"), "on_generate": OnGenerate.cache}
    monkeypatch.setattr("speculators.hidden_states.online.keeper._LOOK_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(store_module, "save_file", _full)
    source = open_source(serve(), must_keep=True, **options)
    make_room = partial(monkeypatch.setattr, store_module, "save_file", original)
    with once_said(caplog, "; waiting for room", make_room):
        assert equal(collect(source, samples), truth(samples))
    store = store_opener(tmp_path / "store")(None)
    assert store is not None
    assert set(store.sample_ids()) == {row.sample_id for row in samples}
    monkeypatch.setattr(store_module, "save_file", _full)
    fetch = {"outage_timeout_seconds": 0.2}
    source = open_source(serve(), must_keep=True, fetch=fetch, **options)
    with pytest.raises(HiddenStateOutageError, match="Free space and repeat this command"):
        collect(source, rows(3, seed=9))


@proves("two trainers on one store", "both get the same states; every file is whole")
def test_two_trainers_share_a_store(serve, open_source, truth, tmp_path):
    server, samples = serve(latency_seconds=0.002), rows(40)
    options = {"store_path": str(tmp_path / "store"), "on_generate": OnGenerate.cache}
    sources = [open_source(server, **options) for _ in range(2)]
    results: dict[int, list] = {}

    def train(which: int) -> None:
        order = samples if which == 0 else samples[::-1]
        results[which] = collect(sources[which], order)

    threads = [threading.Thread(target=train, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal(results[0], truth(samples))
    assert equal(results[1], truth(samples[::-1]))
    reader = open_source(server, **options)
    assert equal(collect(reader, samples), truth(samples))
    assert reader.counts.stored == 40


_WRITER = """
import sys, time, torch
from pathlib import Path
from hidden_states.online.toy import identity, rows
from speculators.hidden_states import store as module
from speculators.hidden_states.types import HiddenStates
from speculators.testing.toy_verifier import ToyVerifier

store = module.HiddenStateStore.open(Path(sys.argv[1]), identity("float32"), create=True)
flush, samples, toy = module.flush, rows(6), ToyVerifier()
def slow(path):
    if len(list(store.sample_ids())) == 3:
        print("writing", flush=True)
        time.sleep(60)
    flush(path)
module.flush = slow
for row in samples:
    states = toy.states(row.input_ids.tolist(), (1, 3, 4))
    store.put(row, HiddenStates(states[:, :-1], states[:, -1]))
"""


@proves("`kill -9` in the middle of a write", "no half file is ever seen; the next run goes on")
def test_a_killed_writer_leaves_no_half_file(serve, open_source, truth, tmp_path):
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}
    folder, samples = tmp_path / "store", rows(6)
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(folder)],
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    server = serve()
    source = open_source(server, store_path=str(folder), on_generate=OnGenerate.cache)
    assert equal(collect(source, samples), truth(samples))
    assert (source.counts.stored, source.counts.generated) == (3, 3)


@proves("Ctrl-C", "requests are cancelled and their files removed")
def test_an_interrupt_leaves_nothing_behind(serve, open_source, tmp_path):
    server = serve(latency_seconds=0.05)
    source = open_source(server)
    stream = source.stream([row] for row in itertools.cycle(rows(40)))
    main = threading.get_ident()

    def train() -> None:
        next(stream)
        timer = threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGINT))
        timer.start()
        try:
            for _ in stream:
                time.sleep(0.01)
        finally:
            timer.join()

    # A shell starts what runs in its background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train()
    finally:
        signal.signal(signal.SIGINT, before)
    source.close()
    assert leftovers(tmp_path / "transfer") == []

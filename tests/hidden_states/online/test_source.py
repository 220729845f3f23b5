"""Order, back-pressure, policies and clean-up of the online source; nothing goes wrong here."""

from __future__ import annotations

import itertools
import logging
import time

import pytest
import torch

from hidden_states.online.toy import (
    LAYER_IDS,
    Row,
    collect,
    identity,
    leftovers,
    rows,
    stacked,
    wait_until,
)
from speculators.config.schema.hidden_states import OnGenerate, OnMissing, StoreDtype
from speculators.data.types import sample_id_of
from speculators.errors import ConfigError, HiddenStateError
from speculators.hidden_states.store import HiddenStateStore
from speculators.testing.faults import Fault, FaultKind

# 5 probes of the handshake per server.
PROBES = 5


def equal(got, wanted) -> bool:
    return len(got) == len(wanted) and all(
        torch.equal(a, b) for a, b in zip(got, wanted, strict=True)
    )


def test_states_come_in_order_and_nothing_stays_behind(serve, open_source, truth, tmp_path):
    server = serve()
    source = open_source(server)
    samples = rows(30)
    assert equal(collect(source, samples), truth(samples))
    source.close()
    assert leftovers(tmp_path / "transfer") == []
    assert source.counts.generated == 30


def test_order_does_not_depend_on_arrival(serve, open_source, truth):
    server = serve()
    samples = rows(24)
    for row in samples[::3]:
        late = Fault(FaultKind.late_file, seconds=0.05)
        server.faults.add_for(late, row.input_ids.tolist())
    assert equal(collect(open_source(server), samples, group=3), truth(samples))


def test_large_files_are_mapped_and_stay_valid_after_removal(
    serve, open_source, truth, tmp_path, monkeypatch
):
    monkeypatch.setattr("speculators.hidden_states.online.exchange.MAP_BYTES", 64)
    monkeypatch.setattr("speculators.hidden_states.online.reading.MAP_BYTES", 64)
    samples = rows(12)
    source = open_source(serve())
    got = collect(source, samples)
    assert leftovers(tmp_path / "transfer") == []
    assert equal(got, truth(samples))


def test_several_endpoints_share_the_work(serve, open_source, truth):
    servers = [serve(latency_seconds=0.01) for _ in range(3)]
    source = open_source(*servers, fetch={"requests_per_endpoint": 2})
    samples = rows(60)
    assert equal(collect(source, samples), truth(samples))
    counts = [len(server.calls) - PROBES for server in servers]
    assert sum(counts) == 60
    assert min(counts) >= 10
    assert max(server.most_running for server in servers) <= 4  # the handshake sends 4 at once


def test_works_a_window_ahead_and_no_further(serve, open_source):
    server = serve()
    asked = []

    def groups():
        for row in rows(100):
            asked.append(row)
            yield [row]

    source = open_source(server, fetch={"prefetch_samples": 10})
    stream = source.stream(groups())
    next(stream)
    # One group is looked at to know whether it fits.
    assert len(asked) == 11
    wait_until(lambda: source.gauges()["queue_ready"] == source.gauges()["queue_samples"])
    assert len(server.calls) == PROBES + 10
    next(stream)
    assert len(asked) == 12
    stream.close()


def test_window_is_bounded_in_bytes_but_never_empty(serve, open_source):
    server = serve()
    size = 12 * 3 * 32 * 4
    samples = [row for row in rows(40) if len(row.input_ids) == 12]
    source = open_source(server, fetch={"prefetch_bytes": 3 * size})
    stream = source.stream([s] for s in samples)
    next(stream)
    wait_until(lambda: source.gauges()["queue_ready"] == source.gauges()["queue_samples"])
    # The first window was filled before the number format was known: two bytes per value.
    assert PROBES + 3 <= len(server.calls) <= PROBES + 6
    next(stream)
    stream.close()
    tight = open_source(server, fetch={"prefetch_bytes": 1})
    assert len(collect(tight, samples)) == len(samples)


def test_requests_in_flight_are_bounded(serve, open_source):
    server = serve()
    source = open_source(server, fetch={"requests_per_endpoint": 5})
    source.start(["any"])
    server.latency_seconds, server.most_running = 0.5, 0
    collect(source, rows(14))
    assert server.most_running == 5


def test_abandoned_stream_cancels_its_requests(serve, open_source, tmp_path):
    server = serve(latency_seconds=0.2)
    source = open_source(server)
    stream = source.stream([row] for row in rows(50))
    next(stream)
    stream.close()
    began = time.perf_counter()
    source.close()
    assert time.perf_counter() - began < 10
    server.stop()
    names = leftovers(tmp_path / "transfer")
    assert all(name.startswith("cmpl-hs-") for name in names)


def test_two_streams_may_interleave(serve, open_source, truth):
    source = open_source(serve())
    training, validation = rows(8, seed=1), rows(4, seed=2)
    outer = source.stream([row] for row in training)
    first = [stacked(next(outer)[0]) for _ in range(3)]
    assert equal(collect(source, validation), truth(validation))
    rest = [stacked(states[0]) for states in outer]
    assert equal(first + rest, truth(training))


def test_empty_groups_are_answered(serve, open_source):
    source = open_source(serve())
    assert [len(states) for states in source.stream([[], rows(1), []])] == [0, 1, 0]


def test_first_epoch_generates_and_later_ones_read(serve, open_source, truth, tmp_path):
    server = serve()
    samples = rows(20)
    options = {"store_path": str(tmp_path / "store"), "on_generate": OnGenerate.cache}
    source = open_source(server, **options)
    first = collect(source, samples)
    calls = len(server.calls)
    again = collect(source, samples)
    assert equal(first, truth(samples))
    assert equal(again, first)
    assert len(server.calls) == calls
    assert (source.counts.generated, source.counts.stored) == (20, 20)
    assert leftovers(tmp_path / "transfer") == []
    source.close()
    server.stop()
    # A full store needs no server at all.
    offline = open_source(server, **options)
    offline.start([row.sample_id for row in samples])
    assert equal(collect(offline, samples), first)


def test_mixed_generates_what_the_store_lacks(serve, open_source, truth, tmp_path):
    server = serve()
    samples = rows(16)
    options = {"store_path": str(tmp_path / "store"), "on_generate": OnGenerate.cache}
    filler = open_source(server, **options)
    collect(filler, samples[:10])
    filler.close()
    source = open_source(server, **options)
    assert equal(collect(source, samples[::-1]), truth(samples[::-1]))
    assert (source.counts.stored, source.counts.generated) == (10, 6)


def test_generate_and_delete_beside_a_store_keeps_nothing(serve, open_source, tmp_path):
    server = serve()
    folder = tmp_path / "store"
    HiddenStateStore.open(folder, identity("float32"), create=True)
    source = open_source(server, store_path=str(folder))
    collect(source, rows(5))
    assert list(folder.rglob("*.safetensors")) == []


def test_a_small_store_rolls_behind_the_trainer(serve, open_source, truth, tmp_path):
    folder, limit = tmp_path / "store", 60_000
    samples, order = rows(60), rows(60)[::-1]
    options = {"store_path": str(folder), "on_generate": OnGenerate.cache, "max_bytes": limit}
    source = open_source(serve(), **options)
    source.start([row.sample_id for row in samples])
    for i, wanted in enumerate((samples, order)):
        got = []
        for states in source.stream([row] for row in wanted):
            got.append(stacked(states[0]))
            assert source.gauges()["store_bytes"] <= limit
        assert equal(got, truth(wanted)), i
    # Each sample was fetched once and some more often, for there was no room for all.
    assert 0 < source.counts.stored < 60 < source.counts.generated
    counted = source.gauges()["store_bytes"]
    source.close()
    assert counted == sum(p.stat().st_size for p in folder.glob("??/*.safetensors")) <= limit


def test_an_eight_bit_store_gives_the_same_states_in_every_epoch(serve, open_source, tmp_path):
    options = {
        "store_path": str(tmp_path / "store"),
        "on_generate": OnGenerate.cache,
        "store_dtype": StoreDtype.float8_e4m3fn,
    }
    source, samples = open_source(serve(), **options), rows(12)
    first, second = collect(source, samples), collect(source, samples)
    assert equal(first, second)
    assert (source.counts.generated, source.counts.stored) == (12, 12)
    source.close()
    HiddenStateStore.open(tmp_path / "plain", identity("float32"), create=True)
    plain = open_source(serve(), **{**options, "store_path": str(tmp_path / "plain")})
    with pytest.raises(HiddenStateError, match=r"holds float32 states, this run keeps float8"):
        collect(plain, samples)


@pytest.mark.parametrize("policy", [OnMissing.skip, OnMissing.warn])
def test_without_generate_missing_samples_are_left_out(
    serve, open_source, tmp_path, caplog, policy
):
    samples = rows(6)
    folder = str(tmp_path / "store")
    filler = open_source(serve(), store_path=folder, on_generate=OnGenerate.cache)
    collect(filler, samples[:3])
    source = open_source(store_path=folder, on_missing=policy)
    with caplog.at_level(logging.WARNING):
        got = collect(source, samples)
    assert [states is not None for states in got] == [True] * 3 + [False] * 3
    assert source.counts.left_out == 3
    warned = [record for record in caplog.records if "left out" in record.message]
    assert len(warned) == (3 if policy is OnMissing.warn else 0)


def test_on_missing_error_names_the_sample_when_its_turn_comes(serve, open_source, tmp_path):
    samples = rows(4)
    folder = str(tmp_path / "store")
    collect(open_source(serve(), store_path=folder, on_generate=OnGenerate.cache), samples[:2])
    source = open_source(store_path=folder, on_missing=OnMissing.error)
    stream = source.stream([row] for row in samples)
    assert all(next(stream)[0] is not None for _ in range(2))
    with pytest.raises(HiddenStateError, match=samples[2].sample_id):
        next(stream)


def test_a_store_of_more_layers_is_filled_and_read_by_id(serve, open_source, toy, tmp_path):
    server = serve(layer_ids=(0, 1, 3, 4))
    folder = tmp_path / "store"
    HiddenStateStore.open(folder, identity("float32", (0, 1, 3, 4)), create=True)
    source = open_source(server, store_path=str(folder), on_generate=OnGenerate.cache)
    samples = rows(6)
    for states in (collect(source, samples), collect(source, samples)):
        assert equal(states, [toy.states(row.input_ids.tolist(), (1, 3, 4)) for row in samples])


def test_store_of_another_number_format_is_refused(serve, open_source, tmp_path):
    folder = tmp_path / "store"
    HiddenStateStore.open(folder, identity("bfloat16"), create=True)
    source = open_source(serve(), store_path=str(folder), on_generate=OnGenerate.cache)
    with pytest.raises(HiddenStateError, match=r"holds bfloat16 states, the server delivers floa"):
        collect(source, rows(2))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "on_missing=generate: needs a server"),
        ({"on_missing": OnMissing.skip}, "on_missing=skip: without generate"),
    ],
)
def test_policies_that_lack_something(open_source, options, text):
    with pytest.raises(ConfigError, match=text):
        open_source(**options)


def test_gauges_count(serve, open_source):
    source = open_source(serve())
    samples = rows(10)
    collect(source, samples)
    gauges = source.gauges()
    tokens = sum(len(row.input_ids) for row in samples)
    assert gauges["received_tokens"] == tokens
    assert gauges["received_bytes"] == tokens * 3 * 32 * 4
    assert gauges["in_flight"] == gauges["queue_samples"] == 0


def written_by(toy, count):
    """Rows the toy verifier itself goes on with."""
    found = []
    for row in rows(count):
        tokens = row.input_ids.tolist()
        for _ in range(20):
            tokens.append(toy(tokens, LAYER_IDS)[1])
        tokens = torch.tensor(tokens)
        found.append(Row(tokens, sample_id_of(tokens)))
    return found


def test_the_teacher_must_know_what_it_teaches(serve, open_source, toy):
    fetch = {"teacher_check_every": 1, "min_teacher_agreement": 0.05}
    known = open_source(serve(), fetch=fetch)
    assert len(collect(known, written_by(toy, 12))) == 12
    assert known.gauges()["teacher_agreement"] > 0.5
    source = open_source(serve(), fetch=fetch)
    with pytest.raises(HiddenStateError, match=r"says only \d+ of \d+ response tokens .*show=3"):
        collect(source, rows(40))


def test_oldest_samples_are_served_first(serve, open_source):
    server = serve(latency_seconds=0.005, capacity=1)
    source = open_source(server, fetch={"requests_per_endpoint": 1})
    samples = rows(12)
    collect(source, samples)
    asked = [call.token_ids for call in itertools.islice(server.calls, PROBES, None)]
    assert asked == [tuple(row.input_ids.tolist()) for row in samples]


def test_api_key_is_taken_from_vllms_own_variable(serve, open_source, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert len(collect(open_source(serve(api_key="secret")), rows(2))) == 2

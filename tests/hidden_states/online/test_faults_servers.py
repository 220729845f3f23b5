"""Faults of servers, disks and processes: wait, go on, or stop with a remedy; nothing is lost."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch

from hidden_states.online.reliability import DOCUMENT, proves, with_table
from hidden_states.online.test_faults import equal
from hidden_states.online.toy import (
    collect,
    once_said,
    rows,
    stacked,
)
from speculators.errors import HiddenStateError, HiddenStateOutageError
from speculators.hidden_states.online import breaker, handshake
from speculators.testing.fake_vllm import FakeVLLM
from speculators.testing.faults import Fault, FaultKind
from speculators.testing.toy_verifier import ToyVerifier

K = FaultKind


def after(seconds: float, action) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


@proves("no server at the start", "waits up to `startup_timeout_seconds`, saying for what")
def test_a_server_that_comes_late_is_waited_for(tmp_path, toy, open_source, truth, caplog):
    server = FakeVLLM(tmp_path / "transfer", (1, 3, 4), toy).start()
    server.stop()
    samples = rows(6)
    source = open_source(server)
    said = f"waiting for the server at http://127.0.0.1:{server.port}: Connect"
    try:
        with once_said(caplog, said, server.start):
            assert equal(collect(source, samples), truth(samples))
    finally:
        server.stop()


@proves("no server at all", "stops with the URL and the command that starts one")
def test_no_server_at_all_stops_with_the_command(open_source, serve):
    server = serve()
    server.stop()
    source = open_source(server, fetch={"startup_timeout_seconds": 0.3})
    with pytest.raises(HiddenStateError, match="speculators serve") as caught:
        source.start(["any"])
    assert f"no vLLM server at http://127.0.0.1:{server.port} after" in str(caught.value)


WRONG = {
    "another model of the same shape": (
        {"states": ToyVerifier(seed=1)},
        "it runs another model or revision",
    ),
    "one layer too few": ({"layer_ids": (3, 4)}, r"24 x 2 x 32 instead of 24 x 3 x 32"),
    "layer ids off by one": ({"layer_ids": (2, 3, 4)}, r"column for layer 1 .* off by \+1"),
    "last layer missing": ({"layer_ids": (1, 2, 3)}, r"off by -1|its last column is not layer 4"),
    "too short": ({"max_model_len": 64}, "takes 64 tokens .* longest sample needs 65"),
}


@proves(
    "another model, another layer count, layer ids off by one, no last layer, too small "
    "`--max-model-len`",
    "refused before the first step, with what was measured and the likely cause",
)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_server_is_refused_before_the_first_step(name, serve, open_source):
    options, text = WRONG[name]
    with pytest.raises(HiddenStateError, match=text):
        open_source(serve(**options)).start(["any"])


@proves("a server that was not started for extraction", "refused before the first step")
def test_a_server_without_extraction_is_refused(serve, open_source):
    server = serve()
    server.faults.add(Fault(K.no_path), count=None)
    with pytest.raises(HiddenStateError, match="was the server started for extraction"):
        open_source(server).start(["any"])


@proves("states that change in a batch or behind a shared prefix", "refused before the first step")
def test_states_that_depend_on_company_are_refused(serve, open_source, toy):
    seen = []

    def moody(token_ids, layer_ids):
        states, token = toy(token_ids, layer_ids)
        seen.append(1)
        return (states if len(seen) == 1 else states.flip(0)), token

    with pytest.raises(HiddenStateError, match=r"no-enable-prefix-caching|its last column"):
        open_source(serve(states=moody)).start(["any"])


@proves("a folder that is not shared", "refused before the first step, naming both folders")
@pytest.mark.parametrize("kind", ["other folder", "other name", "not mounted"])
def test_a_folder_that_is_not_shared_is_refused(kind, serve, open_source, tmp_path):
    (tmp_path / "mine").mkdir()
    if kind == "other folder":
        server, fetch = serve(), {"transfer_path": str(tmp_path / "mine")}
        text = "not inside .*mine"
    elif kind == "other name":
        server = serve(called="/container")
        fetch, text = {"path_map": {"/container": str(tmp_path / "mine")}}, "not inside .*transfer"
    else:
        server = serve(called="/container")
        fetch = {"path_map": {"/container": str(tmp_path / "transfer" / "none")}}
        text = "server and trainer must share that folder"
    with pytest.raises(HiddenStateError, match=text):
        open_source(server, fetch=fetch).start(["any"])


def test_a_folder_of_another_name_is_mapped(serve, open_source, truth, tmp_path):
    fetch = {"path_map": {"/container/states": str(tmp_path / "transfer")}}
    samples = rows(4)
    source = open_source(serve(called="/container/states"), fetch=fetch)
    assert equal(collect(source, samples), truth(samples))


@proves("the server is killed in mid-run and started again", "waits, goes on; nothing lost")
def test_a_killed_server_is_waited_for(serve, open_source, truth, caplog):
    server, samples = serve(latency_seconds=0.005), rows(60)
    source = open_source(server)
    source.start(["any"])
    server.faults.add_for(Fault(K.death), samples[20].input_ids.tolist())
    with once_said(caplog, "is down (", server.start):
        assert equal(collect(source, samples), truth(samples))
    assert "is back after" in caplog.text


@proves("one of several servers is killed", "the others take its requests; nothing lost")
def test_other_servers_take_over(serve, open_source, truth, caplog):
    servers = [serve(latency_seconds=0.005) for _ in range(2)]
    samples, got = rows(60), []
    for i, states in enumerate(open_source(*servers).stream([row] for row in samples)):
        got.append(stacked(states[0]))
        if i == 20:
            servers[0].stop()
    assert equal(got, truth(samples))
    assert "for a server to come back" not in caplog.text


@proves(
    "the server stays down",
    "stops after `outage_timeout_seconds`; the trainer saves a checkpoint; the command goes on",
)
def test_a_server_that_stays_down_ends_the_run(serve, open_source, truth):
    server, samples = serve(), rows(40)
    stream = open_source(server, fetch={"outage_timeout_seconds": 0.5}).stream(
        [row] for row in samples
    )
    got = [stacked(next(stream)[0]) for _ in range(10)]
    server.stop()
    with pytest.raises(HiddenStateOutageError, match="it goes on where it stopped") as caught:
        got.extend(stacked(states[0]) for states in stream)
    assert "no server answered for 0.5 s" in str(caught.value)
    # The same command again asks for what is missing, no more.
    server.start()
    rest = samples[len(got) :]
    assert equal(got + collect(open_source(server), rest), truth(samples))


@proves("the server comes back with another model or other layers", "refused; never trained on")
@pytest.mark.parametrize("change", ["model", "layers", "number format"])
def test_a_server_that_comes_back_different_is_refused(change, serve, open_source, truth, caplog):
    server, samples = serve(latency_seconds=0.005), rows(60)
    source, got = open_source(server), []
    source.start(["any"])
    server.faults.add_for(Fault(K.death), samples[20].input_ids.tolist())

    def come_back() -> None:
        if change == "model":
            server.states = ToyVerifier(seed=5)
        elif change == "layers":
            server.layer_ids = [2, 3, 4]
        else:
            server.dtype = torch.bfloat16
        server.start()

    def train() -> None:
        for states in source.stream([row] for row in samples):
            got.append(stacked(states[0]))

    refused = pytest.raises(HiddenStateError, match=r"differs by|instead of torch\.float32")
    with once_said(caplog, "is down (", come_back), refused:
        train()
    assert equal(got, truth(samples[: len(got)]))


@proves(
    "another server stands in the place of the one that was asked some time ago",
    "refused before an answer of it is used",
)
def test_a_server_that_was_replaced_in_a_pause_is_refused(serve, open_source, monkeypatch):
    """No request was under way, so none failed: with a slow trainer nobody would notice."""
    monkeypatch.setattr(breaker, "_IDLE_SECONDS", 0.0)
    server, samples = serve(), rows(12)
    stream = open_source(server, fetch={"prefetch_samples": 1}).stream([row] for row in samples)
    for _ in range(3):
        next(stream)
    server.states = ToyVerifier(seed=5)
    with pytest.raises(HiddenStateError, match=r"differs by .* from the same probe earlier"):
        next(stream)


def test_a_pause_alone_costs_nothing_but_a_probe(serve, open_source, truth, monkeypatch):
    monkeypatch.setattr(breaker, "_IDLE_SECONDS", 0.0)
    server, samples = serve(), rows(6)
    source = open_source(server, fetch={"prefetch_samples": 1})
    assert equal(collect(source, samples, group=1), truth(samples))
    assert len(server.calls) == 5 + 2 * len(samples)  # each sample behind a probe


@proves(
    "one server is down for good and another one came back as a different one",
    "stops after `outage_timeout_seconds`, naming both",
)
def test_no_server_is_left_when_one_is_down_and_the_other_refused(serve, open_source, caplog):
    dead, other = serve(), serve()
    source = open_source(dead, other, fetch={"outage_timeout_seconds": 0.3})
    source.start(["any"])
    dead.stop()

    def change() -> None:
        other.layer_ids = [1, 2, 3, 4]

    stopped = pytest.raises(HiddenStateOutageError, match=r"no server answered for 0\.3 s")
    with once_said(caplog, "is down (", change), stopped as caught:
        for _ in source.stream([row] for row in itertools.cycle(rows(60))):
            pass
    assert f"{other.url.removesuffix('/v1')}: not used any more, see above" in str(caught.value)


@proves(
    "a server that wants a key, at the start or from some moment on",
    "stops at once: the key is taken from VLLM_API_KEY",
)
@pytest.mark.parametrize("moment", ["at the start", "in mid-run"])
def test_a_server_that_wants_a_key_stops_with_the_remedy(moment, serve, open_source):
    server = serve(api_key="secret" if moment == "at the start" else None)
    source = open_source(server)
    if moment == "in mid-run":
        source.start(["any"])
        server.api_key = "secret"
    with pytest.raises(HiddenStateError, match=r"Unauthorized; the server's key .*VLLM_API_KEY"):
        collect(source, rows(4))


def test_an_old_server_and_one_of_another_name_are_warned_of(serve, open_source, caplog):
    open_source(serve(version="0.17.1", root="/models/toy-instruct")).start(["any"])
    assert "runs vLLM 0.17.1; 0.18 or newer" in caplog.text
    assert "serves /models/toy-instruct, this run's verifier is toy: " in caplog.text


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen3-8B", "Qwen3-8B"),
        ("/data/Qwen3-8B/", "Qwen3-8B"),
        (
            "/c/models--Qwen--Qwen3-8B/snapshots/b968826d9c46dd6066d109eabc6255188de91218",
            "Qwen3-8B",
        ),
        ("gpt2", "gpt2"),
    ],
)
def test_names_of_models_are_found_in_paths(path, name):
    assert handshake._model_name(path) == name


def test_a_quick_change_of_layers_is_noticed_by_the_files(serve, open_source):
    """No request was under way when the server was replaced: no connection ever failed."""
    server, samples = serve(), rows(40)
    stream = open_source(server, fetch={"prefetch_samples": 1}).stream([row] for row in samples)
    next(stream)
    server.layer_ids = [1, 2, 3, 4]
    with pytest.raises(HiddenStateError, match=r"12 x 4 x 32|24 x 4 x 32"):
        for _ in stream:
            pass


def test_a_server_that_comes_back_under_another_name_is_asked_by_it(serve, open_source, truth):
    server, samples = serve(), rows(12)
    stream = open_source(server, fetch={"prefetch_samples": 1}).stream([row] for row in samples)
    got = [stacked(next(stream)[0])]
    server.model = "renamed"
    got.extend(stacked(states[0]) for states in stream)
    assert equal(got, truth(samples))


@proves("the server is overloaded (429) for a while", "asked again more slowly; nothing lost")
def test_an_overloaded_server_loses_nothing(serve, open_source, truth):
    server, samples = serve(), rows(30)
    source = open_source(server)
    source.start(["any"])
    server.faults.add(Fault(K.status, status=429), count=40)
    assert equal(collect(source, samples), truth(samples))


def test_a_server_that_stays_overloaded_ends_the_run(serve, open_source):
    server = serve()
    source = open_source(server, fetch={"outage_timeout_seconds": 0.2})
    source.start(["any"])
    server.faults.add(Fault(K.status, status=429), count=None)
    with pytest.raises(HiddenStateOutageError, match="requests_per_endpoint"):
        collect(source, rows(4))


def test_the_document_shows_these_faults():
    text = DOCUMENT.read_text()
    assert text == with_table(text), "run python tests/hidden_states/online/reliability.py"


@proves(
    "the server falls silent with requests in flight, closing nothing",
    "found by its health check, not by the request's time-out; waited for, nothing lost",
)
def test_a_silent_server_is_found_and_waited_for(
    serve, open_source, truth, caplog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(breaker, "_BEAT_SECONDS", 0.05)
    server, samples = serve(), rows(30)
    source = open_source(server, fetch={"request_timeout_seconds": 600.0})
    source.start(["any"])
    server.faults.add(Fault(K.hang, seconds=60), count=4)
    server.healthy = False

    def recover() -> None:
        server.faults.clear()
        server.healthy = True

    with once_said(caplog, "is down (neither answers nor passes its health check)", recover):
        assert equal(collect(source, samples), truth(samples))

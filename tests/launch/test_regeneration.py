"""Answers from servers: the same data as in this process, whatever goes wrong on the way."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speculators.config.composition import compose
from speculators.config.schema import Config
from speculators.data.prepared import PreparedData
from speculators.errors import ConfigError, HiddenStateError, HiddenStateOutageError
from speculators.launch import extract, prepare
from speculators.launch.data_stage import prepare_data
from speculators.launch.verifier_stage import Verifier
from speculators.testing.fake_vllm import FakeVLLM
from speculators.testing.faults import Call, Fault, FaultKind
from speculators.testing.served_model import ServedModel
from speculators.verifier.model import VerifierModel

QUESTIONS = ["Who bakes the bread?", "And who eats it?", "Tell me a story.", "What is 3 plus 4?"]
NUM_ROWS = 14
K = FaultKind


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with conversations of one to three questions; their answers are somebody else's."""
    folder = tmp_path_factory.mktemp("regeneration")
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(NUM_ROWS):
            messages: list[dict[str, str]] = []
            for turn in range(1 + number % 3):
                text = f"{QUESTIONS[(number + turn) % 4]} ({number})"
                messages.append({"role": "user", "content": text})
                messages.append({"role": "assistant", "content": "Never mind."})
            file.write(json.dumps({"id": f"c{number}", "messages": messages}) + "\n")
    return folder


class Remembering(ServedModel):
    """Says again what it said: making a greedy answer takes most of a test's time."""

    def __init__(self, model: VerifierModel) -> None:
        super().__init__(model)
        self._said: dict[tuple[tuple[int, ...], int, tuple[int, ...]], list[int]] = {}

    def answer(self, token_ids: Sequence[int], longest: int, stop_ids: Sequence[int]) -> list[int]:
        asked = (tuple(token_ids), longest, tuple(stop_ids))
        if asked not in self._said:
            self._said[asked] = super().answer(token_ids, longest, stop_ids)
        return self._said[asked]


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return Remembering(Verifier(compose("train", ["verifier=tiny"])).model())


@pytest.fixture
def server(tmp_path: Path, model: ServedModel) -> Iterator[FakeVLLM]:
    layers = (1, 3, 5, 7)
    with FakeVLLM(
        tmp_path / "transfer", layers, model, answers=model.answer, max_model_len=257
    ) as fake:
        yield fake


def overrides(shared: Path, folder: Path, *more: str) -> list[str]:
    return [
        "verifier=tiny",
        "data=jsonl",
        f"data.path={shared / 'rows.jsonl'}",
        "data.regenerate.enabled=true",
        "data.regenerate.max_new_tokens=48",
        "training.sequence_length=256",
        f"cache_dir={folder / 'cache'}",
        f"output_dir={folder / 'run'}",
        f"hidden_states.fetch.transfer_path={folder / 'transfer'}",
        "hidden_states.fetch.backoff_seconds=0.005",
        "hidden_states.fetch.file_timeout_seconds=2",
        "hidden_states.fetch.requests_per_endpoint=4",
        "hidden_states.fetch.prefetch_samples=6",
        *more,
    ]


def configured(shared: Path, folder: Path, *more: str) -> Config:
    return compose("prepare", overrides(shared, folder, *more))


def online(server: FakeVLLM) -> list[str]:
    return ["hidden_states=online", f"hidden_states.endpoints=[{server.url}]"]


def content(data: PreparedData) -> list[tuple[str, list[bool]]]:
    sides = (data.train, data.validation)
    rows = [side[index] for side in sides for index in range(len(side))]
    return [(row.sample_id, row.loss_mask.tolist()) for row in rows]


def prepared(config: Config) -> PreparedData:
    return prepare_data(config, Verifier(config))


@pytest.fixture(scope="module")
def undisturbed(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("embedded")
    data = prepared(configured(shared, folder))
    assert data.report.dropped == {}
    return content(data)


def generations(server: FakeVLLM) -> list[Call]:
    return [call for call in server.calls if call.max_tokens > 1]


def test_servers_and_this_process_write_the_same(
    server: FakeVLLM, shared: Path, tmp_path: Path, undisturbed: Any
) -> None:
    server.latency_seconds = 0.005
    config = configured(shared, tmp_path, *online(server))
    data = prepared(config)
    assert content(data) == undisturbed
    num_answers = sum(data.report.finish_reasons.values())
    assert NUM_ROWS < num_answers == len(generations(server))
    assert set(data.report.finish_reasons) == {"stop", "length"}
    assert 1 < server.most_running <= 4
    assert list((tmp_path / "transfer").iterdir()) == []
    lines = [json.loads(line) for line in Path(data.report.answers).read_text().splitlines()]
    assert {line["engine"] for line in lines} == {"vllm 0.32.0"}
    assert {line["finish_reason"] for line in lines} == {"stop", "length"}
    # What was prepared with servers is found without them.
    server.stop()
    assert prepared(config).reused
    assert prepared(configured(shared, tmp_path)).reused


def test_several_turns_are_asked_in_order_with_the_verifier_s_own_answers(
    server: FakeVLLM, shared: Path, tmp_path: Path
) -> None:
    config = configured(shared, tmp_path, *online(server))
    data = prepared(config)
    rows = [json.loads(line) for line in Path(data.report.answers).read_text().splitlines()]
    by_turn = {(row["conversation_id"], row["turn"]): row for row in rows}
    assert all((name, turn - 1) in by_turn for name, turn in by_turn if turn)
    tokenizer = Verifier(config).tokenizer
    follow_ups = [key for key in by_turn if key[1] == 1]
    for name, _ in follow_ups:
        first, second = by_turn[name, 0], by_turn[name, 1]
        prompt = [t for t, m in zip(second["input_ids"], second["loss_mask"], strict=True) if not m]
        assert first["text"] in tokenizer.decode(prompt)
        assert "Never mind." not in tokenizer.decode(prompt)
    assert follow_ups


def test_faults_change_nothing(
    server: FakeVLLM, shared: Path, tmp_path: Path, undisturbed: Any
) -> None:
    kinds = (K.status, K.reset, K.truncated_json, K.truncated_body, K.wrong_echo, K.missing_file)
    for place, kind in enumerate(kinds):
        server.faults.add(
            Fault(kind),
            count=2,
            when=lambda call, place=place: call.max_tokens > 1 and call.number % 7 == place,
        )
    patience = "hidden_states.fetch.retries=8"
    data = prepared(configured(shared, tmp_path, *online(server), patience))
    assert content(data) == undisturbed


def test_an_outage_ends_the_start_and_the_next_one_goes_on(
    server: FakeVLLM, shared: Path, tmp_path: Path, undisturbed: Any
) -> None:
    patience = "hidden_states.fetch.outage_timeout_seconds=0.4"
    config = configured(shared, tmp_path, *online(server), patience)

    def late(call: Call) -> bool:
        if call.max_tokens > 1 and len(generations(server)) > 9:
            server.healthy = False
            return True
        return False

    server.faults.add(Fault(K.status), count=None, when=late)
    with pytest.raises(HiddenStateOutageError, match="it goes on where it stopped"):
        prepared(config)
    server.faults.clear()
    server.healthy = True
    asked = {call.token_ids for call in generations(server)}
    (ledger,) = (tmp_path / "cache" / "regenerated").glob("*/answers.jsonl")
    known = {tuple(_prompt(line)) for line in ledger.read_text().splitlines()}
    assert 0 < len(known) < len(asked)
    before = len(server.calls)
    assert content(prepared(config)) == undisturbed
    assert known.isdisjoint(call.token_ids for call in server.calls[before:])


def _prompt(line: str) -> list[int]:
    row = json.loads(line)
    return row["input_ids"][: row["loss_mask"].index(1)]


@pytest.mark.slow
def test_a_killed_start_loses_only_what_was_under_way(
    server: FakeVLLM, shared: Path, tmp_path: Path, undisturbed: Any
) -> None:
    # The server answers twelve questions and holds the others back: the kill finds requests under
    # way however fast the processes are.
    asked = itertools.count(1)
    server.faults.add(
        Fault(K.hang, seconds=3600.0),
        count=None,
        when=lambda call: call.max_tokens > 1 and next(asked) > 12,
    )
    arguments = overrides(shared, tmp_path, *online(server))
    command = [sys.executable, "-m", "speculators", "prepare", *arguments]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120  # not part of what is tested: a hang shall end
    while not (answered_lines(tmp_path) == 12 and len(generations(server)) > 12):
        assert child.poll() is None, "it ended although answers are held back"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert answered_lines(tmp_path) == 12
    answered = {call.token_ids for call in generations(server)[:12]}
    before = len(server.calls)
    server.faults.clear()
    data = prepared(configured(shared, tmp_path, *online(server)))
    assert content(data) == undisturbed
    assert data.report.num_remembered_answers == 12
    assert answered.isdisjoint(call.token_ids for call in server.calls[before:])
    assert answered_lines(tmp_path) == sum(data.report.finish_reasons.values())


def answered_lines(folder: Path) -> int:
    ledgers = list((folder / "cache" / "regenerated").glob("*/answers.jsonl"))
    return sum(ledger.read_text().count("\n") for ledger in ledgers)


def test_a_refused_conversation_is_counted_and_named(
    server: FakeVLLM, shared: Path, tmp_path: Path, undisturbed: Any
) -> None:
    config = configured(shared, tmp_path, *online(server))
    verifier = Verifier(config)
    hopeless = verifier.tokenizer.tail_ids("(4)").tolist()
    no = Fault(K.status, status=400, message="not this one")

    def about_four(call: Call) -> bool:
        text = verifier.tokenizer.decode(call.token_ids)
        return call.max_tokens > 1 and f"{QUESTIONS[0]} (4)" in text

    assert hopeless
    server.faults.add(no, count=None, when=about_four)
    data = prepared(config)
    assert data.report.dropped == {"not answered": 1}
    (example,) = data.report.examples
    assert "rows.jsonl:5: not answered: HTTP 400: not this one" in example
    kept = content(data)
    assert [row for row in kept if row in undisturbed] == kept
    assert len(kept) == len(undisturbed) - 1


def test_too_many_refusals_stop(server: FakeVLLM, shared: Path, tmp_path: Path) -> None:
    no = Fault(K.status, status=400, message="never")
    server.faults.add(no, count=None, when=lambda call: call.max_tokens > 1)
    limit = "hidden_states.fetch.max_consecutive_bad=5"
    with pytest.raises(HiddenStateOutageError, match="5 samples in a row could not be had"):
        prepared(configured(shared, tmp_path, *online(server), limit))
    assert not list((tmp_path / "cache" / "prepared").iterdir())


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda end: [5, end, 6], "goes on behind the end of the turn"),
        (lambda end: [5, 10**6, end], "holds a token outside 0"),
        (lambda end: [5] * 60, r"answer of 60 tokens \(allowed 48\)"),
    ],
)
def test_answers_that_cannot_be_are_not_kept(
    wrong: Callable[[int], list[int]],
    text: str,
    tmp_path: Path,
    shared: Path,
    model: ServedModel,
) -> None:
    end = min(Verifier(compose("train", ["verifier=tiny"])).tokenizer.end_of_turn_ids)

    def careless(prompt: Any, longest: int, stops: Any) -> list[int]:
        return wrong(end)

    with FakeVLLM(tmp_path / "transfer", (1, 3, 5, 7), model, answers=careless) as server:
        limit = "hidden_states.fetch.max_consecutive_bad=3"
        with pytest.raises(HiddenStateOutageError, match=text):
            prepared(configured(shared, tmp_path, *online(server), limit))


def test_another_verifier_is_refused(tmp_path: Path, shared: Path, model: ServedModel) -> None:
    with FakeVLLM(tmp_path / "transfer", (1, 3, 6, 7), model, max_model_len=257) as server:
        with pytest.raises(HiddenStateError, match=r"layer ids are off by \+1"):
            prepared(configured(shared, tmp_path, *online(server)))
        assert generations(server) == []


def test_captured_states_are_those_of_the_rows(
    server: FakeVLLM, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    more = [*online(server), f"hidden_states.store_path={store}"]
    prepare.run(configured(shared, tmp_path, *more, "data.regenerate.capture=true"))
    assert "every answer:" in capsys.readouterr().out
    data = prepared(configured(shared, tmp_path, *more))
    assert data.reused
    stored = {path.stem: path for path in store.glob("??/*.safetensors")}
    verifier = Verifier(configured(shared, tmp_path))
    for side in (data.train, data.validation):
        for index in range(len(side)):
            row = side[index]
            held = load_file(stored.pop(row.sample_id))["hidden_states"]
            own = verifier.model().capture([row.input_ids], (1, 3, 5))[0]
            assert torch.equal(held[:, :-1], own.aux)
            assert torch.equal(held[:, -1], own.last)
    assert not stored
    before = len(server.calls)
    result = extract.run(compose("extract", overrides(shared, tmp_path, *more)))
    assert (result["samples"], len(server.calls)) == (0, before)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["data.regenerate.capture=true"], "needs a folder: give hidden_states.store_path=DIR"),
        (
            ["data.regenerate.enabled=false", "data.regenerate.capture=true"],
            "stores the states of regenerated rows",
        ),
    ],
)
def test_capture_needs_a_store_and_answers(
    more: list[str], text: str, shared: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        configured(shared, tmp_path, *more)

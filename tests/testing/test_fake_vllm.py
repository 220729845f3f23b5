"""The fake server speaks the protocol that was measured on the real one."""

from __future__ import annotations

import fcntl
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from speculators.testing.fake_vllm import FakeVLLM
from speculators.testing.faults import Fault, FaultKind
from speculators.testing.toy_verifier import ToyVerifier


@pytest.fixture
def toy() -> ToyVerifier:
    return ToyVerifier()


@pytest.fixture
def server(tmp_path: Path, toy: ToyVerifier) -> Iterator[FakeVLLM]:
    with FakeVLLM(tmp_path, (4, 0, 3, 3), toy, file_delay_seconds=0.1, root="/models/toy") as fake:
        yield fake


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.loads(answer.read() or b"null")


def complete(server: FakeVLLM, prompt: list[int], **options: Any) -> dict[str, Any]:
    body = {"model": "toy", "prompt": prompt, "max_tokens": 1, "return_token_ids": True} | options
    request = urllib.request.Request(
        f"{server.url}/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "X-Request-Id": "mine"},
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.loads(answer.read())


def wait_for(path: Path) -> None:
    with open(f"{path}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)


def test_it_says_what_it_serves(server: FakeVLLM) -> None:
    card = get(f"{server.url}/models")["data"][0]
    assert (card["id"], card["root"], card["max_model_len"]) == ("toy", "/models/toy", 4096)
    root = server.url.removesuffix("/v1")
    assert get(f"{root}/version") == {"version": "0.32.0"}
    assert get(f"{root}/health") is None
    server.healthy = False
    with pytest.raises(urllib.error.HTTPError, match="503"):
        get(f"{root}/health")


def test_the_answer_comes_before_the_file_and_the_lock_before_the_answer(
    server: FakeVLLM, toy: ToyVerifier
) -> None:
    answer = complete(server, [5, 6, 7])
    path = Path(answer["kv_transfer_params"]["hidden_states_path"])
    assert not path.exists()
    with open(f"{path}.lock") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    wait_for(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.stat(f"{path}.lock").st_mode & 0o777 == 0o644
    tensors = load_file(path)
    assert tensors["token_ids"].tolist() == [5, 6, 7]
    assert torch.equal(tensors["hidden_states"], toy.states([5, 6, 7], (0, 3, 4)))
    with safe_open(path, "pt") as file:
        assert file.metadata() is None


def test_names_follow_the_request_and_the_echo_the_wish(server: FakeVLLM) -> None:
    answer = complete(server, [1, 2])
    assert answer["id"].startswith("cmpl-mine-0-")
    assert answer["choices"][0]["prompt_token_ids"] == [1, 2]
    assert len(answer["choices"][0]["token_ids"]) == 1
    plain = complete(server, [1, 2], return_token_ids=False)
    assert plain["choices"][0]["prompt_token_ids"] is None


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [({"model": "other"}, 404, "does not exist"), ({"max_tokens": 5000}, 400, "maximum context")],
)
def test_it_refuses_as_the_real_one(
    server: FakeVLLM, options: dict[str, Any], status: int, text: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        complete(server, [1], **options)
    with caught.value as error:
        assert error.code == status
        assert text in json.loads(error.read())["error"]["message"]


def test_longer_answers_end_at_a_stop_token_or_at_their_length(
    server: FakeVLLM, toy: ToyVerifier
) -> None:
    (choice,) = complete(server, [5, 6], max_tokens=6)["choices"]
    tokens, prompt = choice["token_ids"], [5, 6]
    assert (len(tokens), choice["finish_reason"]) == (6, "length")
    for token in tokens:
        assert toy(prompt, (4,))[1] == token
        prompt.append(token)
    stop = tokens[2]
    answer = complete(server, [5, 6], max_tokens=6, stop_token_ids=[stop])
    (choice,) = answer["choices"]
    assert choice["token_ids"] == tokens[: tokens.index(stop) + 1]
    assert choice["finish_reason"] == "stop"
    path = Path(answer["kv_transfer_params"]["hidden_states_path"])
    wait_for(path)
    assert load_file(path)["token_ids"].tolist() == [5, 6]


def test_a_drafting_server_counts_and_writes_no_files(tmp_path: Path, toy: ToyVerifier) -> None:
    def drafting(prompt: Any, longest: int, stops: Any) -> tuple[list[int], list[int]]:
        return [7, 8, 9, 1], [2, 0]

    folder = tmp_path / "drafting"
    with FakeVLLM(folder, (), toy, drafting=drafting, num_draft_tokens=3) as server:
        answer = complete(server, [5], max_tokens=9, stop_token_ids=[1])
        time.sleep(0.05)
        with urllib.request.urlopen(server.url.removesuffix("v1") + "metrics") as text:
            lines = text.read().decode().splitlines()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["kv_transfer_params"] is None
    assert list(folder.iterdir()) == []
    labels = 'engine="0",model_name="toy"'
    assert f"vllm:spec_decode_num_drafts_total{{{labels}}} 2.0" in lines
    assert f"vllm:spec_decode_num_draft_tokens_total{{{labels}}} 6.0" in lines
    name = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    found = [line.rpartition(" ")[2] for line in lines if line.startswith(name)]
    assert found == ["1.0", "1.0", "0.0"]


def test_faults_hit_the_calls_they_are_planned_for(server: FakeVLLM) -> None:
    server.faults.add_for(Fault(FaultKind.status, status=418), [9], count=1)
    complete(server, [8])
    with pytest.raises(urllib.error.HTTPError) as caught:
        complete(server, [9])
    caught.value.close()
    assert caught.value.code == 418
    complete(server, [9])
    assert [call.token_ids for call in server.calls] == [(8,), (9,), (9,)]


def test_a_stopped_server_releases_its_locks_and_starts_on_the_same_port(
    server: FakeVLLM,
) -> None:
    server.faults.add(Fault(FaultKind.stuck_lock))
    path = Path(complete(server, [3])["kv_transfer_params"]["hidden_states_path"])
    url = server.url
    server.stop()
    wait_for(path)
    with pytest.raises(urllib.error.URLError):
        get(f"{url}/models")
    server.start()
    assert server.url == url
    assert get(f"{url}/models")["data"][0]["id"] == "toy"


def test_capacity_bounds_what_runs_at_once(tmp_path: Path, toy: ToyVerifier) -> None:
    with FakeVLLM(tmp_path, (4,), toy, latency_seconds=0.05, capacity=1) as server:
        began = time.perf_counter()
        for _ in range(2):
            complete(server, [1])
        assert time.perf_counter() - began >= 0.1
        assert server.most_running == 1

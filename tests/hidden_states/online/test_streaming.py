"""Streamed answers: cut anywhere, broken anyhow, and when their tokens came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from speculators.hidden_states.online.client import VllmClient, base_url
from speculators.hidden_states.online.completions import Ask
from speculators.hidden_states.online.failures import AttemptError, ServerTroubleError
from speculators.hidden_states.online.streaming import Streamed, events
from speculators.testing.fake_vllm import FakeVLLM
from speculators.testing.toy_verifier import ToyVerifier

FIRST = {"choices": [{"token_ids": [5], "prompt_token_ids": [1, 2], "finish_reason": None}]}
LAST = {"choices": [{"token_ids": [6, 7], "finish_reason": "length"}]}
BODY = "".join(f"data: {json.dumps(event)}\n\n" for event in (FIRST, LAST)) + "data: [DONE]\n\n"


async def cut(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def taken(body: str, size: int = 10) -> Streamed:
    answer = Streamed()
    async for event in events(cut(body.encode(), size)):
        answer.add(event, float(len(answer.arrivals)))
    return answer


@pytest.mark.parametrize("size", [1, 2, 7, 61, 10_000])
def test_a_body_may_be_cut_anywhere(size: int) -> None:
    answer = asyncio.run(taken(BODY, size))
    assert (answer.token_ids, answer.finish_reason) == ([5, 6, 7], "length")
    assert answer.prompt_token_ids == [1, 2]
    assert answer.arrivals == [(0.0, 1), (1.0, 2)]
    assert (answer.first_seconds, answer.last_seconds) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (BODY.replace("data: [DONE]", ""), "stream ended before the answer did"),
        ("data: {\n", "stream holds 1 bytes that are no JSON"),
        ("data: [1]\n", "an event that is no JSON object"),
        ('data: {"error": {"message": "engine died"}}\n', "answer broke off: .*engine died"),
    ],
)
def test_broken_streams_are_server_trouble(body: str, message: str) -> None:
    with pytest.raises(ServerTroubleError, match=message):
        asyncio.run(taken(body))


def ask(server: FakeVLLM, stop_ids: list[int]) -> Streamed:
    async def run() -> Streamed:
        client = VllmClient(10.0)
        try:
            request = Ask([3, 4], max_new_tokens=9, stop_ids=stop_ids, cache_salt="mine")
            return await client.stream(base_url(server.url), server.model, request)
        finally:
            await client.close()

    return asyncio.run(run())


def test_a_server_streams_what_each_verify_call_gave(tmp_path: Path) -> None:
    server = FakeVLLM(
        tmp_path, (), ToyVerifier(), num_draft_tokens=3,
        drafting=lambda prompt, longest, stops: ([*prompt, 7, 8, 9, 0], [2, 0, 3]),
    )  # fmt: skip
    with server:
        answer = ask(server, [0])
    assert (answer.token_ids, answer.finish_reason) == ([3, 4, 7, 8, 9, 0], "stop")
    assert [count for _, count in answer.arrivals] == [1, 3, 1, 1]
    times = [seconds for seconds, _ in answer.arrivals]
    assert times == sorted(times)
    assert times[0] > 0


def test_an_answer_that_goes_on_behind_its_end_is_refused(tmp_path: Path) -> None:
    server = FakeVLLM(
        tmp_path, (), ToyVerifier(), num_draft_tokens=3,
        drafting=lambda prompt, longest, stops: ([0, 7], [1]),
    )  # fmt: skip
    with server, pytest.raises(AttemptError) as caught:
        ask(server, [0])
    assert "goes on behind the end of the turn" in caught.value.reason

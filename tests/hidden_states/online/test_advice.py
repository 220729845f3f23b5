"""Advice follows from numbers, and the numbers are those of the servers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest

from hidden_states.online.toy import collect, rows, wait_until
from speculators.config.schema.hidden_states import FetchConfig, OnGenerate
from speculators.hidden_states.online.advice import Standing, advise
from speculators.hidden_states.online.client import VllmClient

FULL = Standing(
    servers_up=2,
    in_flight=64,
    queued=0,
    queue_ready=2,
    queue_samples=256,
    tokens_per_second=12345.6,
)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "the servers work on all 64 requests allowed (12,346 tokens/s): raise hidden_states"),
        ({}, "hidden_states.fetch.requests_per_endpoint (now 32)"),
        ({"queued": None}, "if the rate stays, add servers to hidden_states.endpoints"),
        ({"queued": 7}, "the servers are saturated (12,346 tokens/s, 7 requests wait at them)"),
        ({"queued": 7, "in_flight": 10}, "extract"),
        ({"in_flight": 10}, "only 10 of 64 requests allowed are under way"),
        ({"in_flight": 10}, "(2 of 256 samples are here): raise hidden_states.fetch.prefetch_samp"),
        ({"servers_up": 0, "in_flight": 0, "queued": None}, "no server answers"),
        ({"servers_up": 1, "in_flight": 32}, "all 32 requests allowed"),
    ],
)
def test_each_standing_has_its_remedy(change, text):
    said = advise(FetchConfig(), replace(FULL, **change))
    assert text in said
    assert "\n" not in said


@contextlib.contextmanager
def starving(source, server, *, running: int):
    """Consume a stream at once, as a trainer that waits does."""

    def consume() -> None:
        with contextlib.suppress(CancelledError):
            for _ in source.stream([row] for row in itertools.cycle(rows(60))):
                pass

    thread = threading.Thread(target=consume)
    thread.start()
    try:
        wait_until(lambda: server.running == running)
        yield
    finally:
        source.close()
        thread.join()


def test_a_saturated_server_is_told_from_too_few_requests(serve, open_source):
    few, many = (serve(capacity=4) for _ in range(2))
    source = open_source(few, fetch={"requests_per_endpoint": 2})
    source.start(["any"])
    few.latency_seconds = many.latency_seconds = 0.3
    with starving(source, few, running=2):
        wait_until(lambda: "work on all 2 requests allowed" in source.advice())
    source = open_source(many, fetch={"requests_per_endpoint": 12, "prefetch_samples": 40})
    with starving(source, many, running=4):
        wait_until(lambda: "the servers are saturated" in source.advice())


def test_a_small_window_is_named(serve, open_source):
    server = serve()
    source = open_source(server, fetch={"prefetch_samples": 1})
    source.start(["any"])
    server.latency_seconds = 0.3
    with starving(source, server, running=1):
        text = "raise hidden_states.fetch.prefetch_samples (now 1)"
        wait_until(lambda: text in source.advice())


def test_a_slow_disk_is_named(serve, open_source, tmp_path):
    options = {"store_path": str(tmp_path / "store"), "on_generate": OnGenerate.cache}
    source = open_source(serve(), **options)
    samples = rows(8, seed=5)
    collect(source, samples)
    collect(source, samples)
    assert "put the store on a faster disk" in source.advice()


def test_a_server_that_does_not_say_is_no_error(serve):
    server = serve()

    async def ask(url: str) -> int | None:
        client = VllmClient(5.0)
        try:
            return await client.num_queued(url)
        finally:
            await client.close()

    url = server.url.removesuffix("/v1")
    assert asyncio.run(ask(url)) == 0
    assert asyncio.run(ask(f"{url}/nothing")) is None
    server.stop()
    assert asyncio.run(ask(url)) is None

"""A set of servers that have been proven to deliver one verifier's states."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from speculators.config.schema.hidden_states import FetchConfig
from speculators.errors import HiddenStateError
from speculators.hidden_states.online.answering import Answering, Written
from speculators.hidden_states.online.breaker import Endpoint, EndpointPool
from speculators.hidden_states.online.checks import StatesCheck
from speculators.hidden_states.online.client import REQUEST_PREFIX, VllmClient, base_url
from speculators.hidden_states.online.completions import Ask
from speculators.hidden_states.online.exchange import Exchange, Received
from speculators.hidden_states.online.failures import AttemptError
from speculators.hidden_states.online.fetcher import FetchCounts, Fetcher
from speculators.hidden_states.online.files import any_left, reap
from speculators.hidden_states.online.handshake import Expected, Greeting, Handshake
from speculators.hidden_states.online.transfer import TransferFolder
from speculators.hidden_states.types import Tokens

_log = logging.getLogger(__name__)
_SAY_EVERY_SECONDS = 10.0
_LAST_FILES_SECONDS = 1.0


class Connection:
    """Servers behind one fetcher; lives on one event loop. Use `open`.

    Args:
        endpoints: base URLs.
        settings: deadlines, attempts, folder.
        expected: what the servers must be.
        readers: threads that read large files.

    Attributes:
        greeting: what the first server turned out to be.
    """

    greeting: Greeting

    def __init__(
        self,
        endpoints: Sequence[str],
        settings: FetchConfig,
        expected: Expected,
        readers: ThreadPoolExecutor,
    ) -> None:
        self._settings = settings
        self._folder = TransferFolder(settings.transfer_path, settings.path_map)
        self._client = VllmClient(settings.request_timeout_seconds)
        hidden_size = expected.spec.hidden_size
        check = StatesCheck(expected.layer_ids, hidden_size, norm_band=settings.norm_band)
        exchange = Exchange(
            self._client, self._folder, check, readers, settings.file_timeout_seconds
        )
        self._handshake = Handshake(exchange, expected)
        self._pool = EndpointPool(
            [base_url(url) for url in endpoints],
            slots=settings.requests_per_endpoint,
            outage_timeout_seconds=settings.outage_timeout_seconds,
            greet=self._handshake.again,
            healthy=self._client.healthy,
        )
        again = self._handshake.again
        self._fetcher = Fetcher(settings, exchange, self._pool, again)
        answering = Answering(
            *(self._client, self._folder, expected.spec.vocab_size, settings.file_timeout_seconds)
        )
        self._answers = Fetcher(settings, answering, self._pool, again)

    @classmethod
    async def open(
        cls,
        endpoints: Sequence[str],
        settings: FetchConfig,
        expected: Expected,
        readers: ThreadPoolExecutor,
    ) -> Connection:
        """Wait for servers that are not up yet, and prove each of them.

        Raises:
            HiddenStateError: one is not there in time, or is not what it must be.
        """
        connection = cls(endpoints, settings, expected, readers)
        try:
            connection._reap(REQUEST_PREFIX, settings.orphan_age_seconds)
            greetings = await asyncio.gather(
                *(connection._greet(endpoint) for endpoint in connection._pool.endpoints)
            )
        except BaseException:
            await connection.close()
            raise
        connection.greeting = greetings[0]
        return connection

    @property
    def counts(self) -> FetchCounts:
        """What was fetched so far."""
        return self._fetcher.counts

    @property
    def in_flight(self) -> int:
        """Requests at the servers now."""
        return self._pool.in_flight

    @property
    def num_up(self) -> int:
        """Servers that take requests."""
        return self._pool.num_up

    async def queued(self) -> int | None:
        """Return how many requests servers have and do not work on yet; None: none of them says."""
        up = [e.url for e in self._pool.endpoints if e.down_reason is None]
        found = await asyncio.gather(*(self._client.num_queued(url) for url in up))
        known = [number for number in found if number is not None]
        return sum(known) if known else None

    async def fetch(self, order: int, sample: Tokens) -> Received:
        """Return the states of one sample; see `Fetcher.fetch`."""
        return await self._fetcher.fetch(order, sample.input_ids)

    async def ask(self, order: int, request: Ask) -> Written:
        """Return what a server writes; see `Fetcher.fetch`."""
        return await self._answers.fetch(order, request)

    async def close(self) -> None:
        """Close connections and remove what requests left behind."""
        await self._pool.close()
        await self._client.close()
        await self._reap_own()
        self._reap(REQUEST_PREFIX, self._settings.orphan_age_seconds)

    async def _reap_own(self) -> None:
        """Remove what this connection's cancelled requests leave; servers may still be writing."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _LAST_FILES_SECONDS
        while True:
            self._reap(self._client.tag, 0.0)
            prefix = f"cmpl-{self._client.tag}"
            if not any(any_left(folder, prefix) for folder in self._folder.folders):
                return
            if loop.time() > deadline:
                return
            await asyncio.sleep(_LAST_FILES_SECONDS / 20)

    def _reap(self, request_prefix: str, older_than_seconds: float) -> None:
        for folder in self._folder.folders:
            count = reap(folder, f"cmpl-{request_prefix}", older_than_seconds)
            if count and older_than_seconds:
                _log.info("removed %d files earlier requests left in %s", count, folder)

    async def _greet(self, endpoint: Endpoint) -> Greeting:
        """Wait for a server and prove it."""
        loop = asyncio.get_running_loop()
        limit = self._settings.startup_timeout_seconds
        began = loop.time()
        say_at, pause = began, 0.1
        while True:
            try:
                return await self._handshake.prove(endpoint, thorough=self._settings.handshake)
            except AttemptError as failure:
                now = loop.time()
                if now - began >= limit:
                    raise HiddenStateError(
                        f"hidden_states.endpoints: no vLLM server at {endpoint.url} after "
                        f"{now - began:.0f} s ({failure.reason}): start one with `speculators "
                        "serve` and the same configuration, or wait longer with "
                        "hidden_states.fetch.startup_timeout_seconds"
                    ) from None
                if now >= say_at:
                    say_at = now + _SAY_EVERY_SECONDS
                    _log.warning(
                        "waiting for the server at %s: %s (%.0f of %.0f s)",
                        *(endpoint.url, failure.reason, now - began, limit),
                    )
            await asyncio.sleep(min(pause, max(0.0, began + limit - loop.time())))
            pause = min(2 * pause, 2.0)

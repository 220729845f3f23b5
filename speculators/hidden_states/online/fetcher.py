"""One request after another at whichever server is free; when to try again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, runtime_checkable

from speculators.config.schema.hidden_states import FetchConfig
from speculators.errors import HiddenStateError, HiddenStateOutageError
from speculators.hidden_states.online.breaker import Endpoint, EndpointPool
from speculators.hidden_states.online.client import VllmClient
from speculators.hidden_states.online.failures import (
    AttemptError,
    BadStatesError,
    BusyError,
    ReplacedError,
    ServerTroubleError,
    StuckLockError,
)

_log = logging.getLogger(__name__)
_LONGEST_BACKOFF_SECONDS = 60.0


class LeftOutError(Exception):
    """A sample whose attempts are used up.

    Args:
        reason: what happened at the last attempt.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass
class FetchCounts:
    """What fetching did so far.

    Attributes:
        samples: samples delivered.
        tokens: their tokens.
        received_bytes: their states.
        retries: attempts after the first one of a sample.
        failures: attempts that failed, by kind.
    """

    samples: int = 0
    tokens: int = 0
    received_bytes: int = 0
    retries: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, result: Countable) -> None:
        """Count a sample."""
        self.samples += 1
        self.tokens += result.num_tokens
        self.received_bytes += result.num_bytes


@runtime_checkable
class Countable(Protocol):
    """What came back."""

    @property
    def num_tokens(self) -> int:
        """Tokens the server computed."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes it handed over."""
        ...


_Request = TypeVar("_Request", contravariant=True)
_Result = TypeVar("_Result", bound=Countable, covariant=True)


@runtime_checkable
class Attempt(Protocol[_Request, _Result]):
    """Asks one server for one thing, once."""

    @property
    def client(self) -> VllmClient:
        """Speaks HTTP."""
        ...

    async def __call__(self, endpoint: Endpoint, request: _Request, /) -> _Result:
        """Make the attempt.

        Raises:
            AttemptError: this one failed.
            HiddenStateError: every one would.
        """
        ...


class Fetcher(Generic[_Request, _Result]):
    """Gets samples; lives on one event loop.

    A failure is held against the sample only when the server proves to be all right: it answers
    its health check after an error, and serves the known probe before a sample is left out.
    Otherwise the server is taken out of use and the sample waits, with no attempt lost.

    Args:
        settings: attempts and pauses.
        attempt: makes one attempt.
        pool: hands out servers.
        greet: proves with a known probe that a server is still what it was; raises
            `AttemptError` when it cannot answer and `HiddenStateError` when it is another.
    """

    def __init__(
        self,
        settings: FetchConfig,
        attempt: Attempt[_Request, _Result],
        pool: EndpointPool,
        greet: Callable[[Endpoint], Awaitable[None]],
    ) -> None:
        self.counts = FetchCounts()
        self._settings = settings
        self._attempt, self._pool, self._greet = attempt, pool, greet
        self._suspicion: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def fetch(self, order: int, request: _Request) -> _Result:
        """Return the checked result of one request.

        Args:
            order: position in the stream; the oldest sample is served first.
            request: what to ask for.

        Raises:
            LeftOutError: attempts are used up.
            HiddenStateError: no attempt of any sample can help, or servers stayed away too long.
        """
        failed: Counter[type[AttemptError]] = Counter()
        busy_since: float | None = None
        avoid: Endpoint | None = None
        while True:
            endpoint = await self._pool.acquire(order, avoid)
            model = endpoint.model
            try:
                if endpoint.doubtful:
                    await self._prove_again(endpoint)
                result = await self._attempt(endpoint, request)
            except AttemptError as failure:
                avoid, problem = endpoint, failure
            except asyncio.CancelledError:
                if (final := self._pool.final_error()) is not None:
                    raise final from None
                if not self._pool.was_dropped():
                    raise
                avoid, problem = endpoint, ServerTroubleError("fell silent with the request")
            else:
                self.counts.add(result)
                return result
            finally:
                self._pool.release(endpoint)
            self.counts.retries += 1
            self.counts.failures[type(problem).__name__.removesuffix("Error")] += 1
            if isinstance(problem, BusyError):
                busy_since = busy_since or time.monotonic()
                await self._come_again(problem, time.monotonic() - busy_since)
                continue
            last = failed[type(problem)] >= problem.further_attempts(self._settings)
            if not await self._blames_sample(endpoint, problem, model, last):
                continue
            if last:
                raise LeftOutError(f"{problem.reason} (server {endpoint.url})")
            failed[type(problem)] += 1
            await self._back_off(endpoint, failed.total())

    async def _prove_again(self, endpoint: Endpoint) -> None:
        """Greet a server that was silent for long before its answers count; one does it for all.

        Raises:
            AttemptError: it cannot answer, or is another one.
        """
        async with self._suspicion[endpoint.url]:
            if not endpoint.doubtful:
                return
            try:
                await self._greet(endpoint)
            except HiddenStateError as error:
                raise ReplacedError(error) from None

    async def _blames_sample(
        self, endpoint: Endpoint, problem: AttemptError, model: str, last: bool
    ) -> bool:
        """Return whether a failure counts against the sample and not against its server."""
        if isinstance(problem, ReplacedError):
            self._pool.refuse(endpoint, problem.error)
            return False
        if isinstance(problem, BadStatesError | StuckLockError) and not last:
            _log.warning("server %s: %s; asking again", endpoint.url, problem.reason)
            return True
        async with self._suspicion[endpoint.url]:
            if endpoint.down_reason is not None or endpoint.refused:
                return False
            if isinstance(problem, ServerTroubleError):
                if not await self._attempt.client.healthy(endpoint.url):
                    self._pool.mark_down(endpoint, problem.reason)
                    return False
                if not last:
                    return True
            try:
                await self._greet(endpoint)
            except AttemptError as failure:
                self._pool.mark_down(endpoint, failure.reason)
            except HiddenStateError as error:
                self._pool.refuse(endpoint, error)
            else:
                return endpoint.model == model
            return False

    async def _come_again(self, problem: BusyError, waited: float) -> None:
        """Pause as the server asks; it is never the sample's fault.

        Raises:
            HiddenStateOutageError: it has lasted too long.
        """
        limit = self._settings.outage_timeout_seconds
        if waited > limit:
            raise HiddenStateOutageError(
                f"{problem.reason}; this lasted {waited:.0f} s "
                "(hidden_states.fetch.outage_timeout_seconds): lower "
                "hidden_states.fetch.requests_per_endpoint, or add servers, and repeat this "
                "command: it goes on where it stopped"
            )
        pause = max(problem.retry_after, self._settings.backoff_seconds, waited)
        await asyncio.sleep(min(pause, _LONGEST_BACKOFF_SECONDS, limit))

    async def _back_off(self, endpoint: Endpoint, attempts: int) -> None:
        """Pause before the next attempt, unless another server can make it at once."""
        if attempts == 1 and self._pool.has_other(endpoint):
            return
        seconds = self._settings.backoff_seconds * 2 ** (attempts - 1)
        await asyncio.sleep(min(seconds, _LONGEST_BACKOFF_SECONDS))

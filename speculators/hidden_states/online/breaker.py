"""Which server takes the next request: slots, servers that are down, and waiting for them.

While a server is down its requests go to the others; while all are down everybody waits. Nothing
is given up before `outage_timeout_seconds`, and nothing is asked of a server that came back
before it has been greeted again: it may have come back with another model.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from speculators.errors import HiddenStateError, HiddenStateOutageError
from speculators.hidden_states.online.failures import AttemptError

_log = logging.getLogger(__name__)
_FIRST_PROBE_SECONDS, _LAST_PROBE_SECONDS = 0.1, 5.0
_BEAT_SECONDS = 3.0
_MISSED_BEATS = 2
_IDLE_SECONDS = 10.0
"""A server can have been replaced in a shorter time than no vLLM takes to start: not unnoticed
while requests are under way, for they would fail, but after a silence of this length."""


@dataclass
class Endpoint:
    """One server.

    Attributes:
        url: base URL without `/v1`.
        model: name to use in requests, once greeted.
        serves: path or hub id of its model, by its own account.
        in_flight: requests it holds.
        down_reason: why it takes none; None while it does.
        refused: it came back as something else and is never asked again.
        idle_since: when its last request, or proof, ended.
        doubtful: it was silent for so long that it may be another one by now.
    """

    url: str
    model: str = ""
    serves: str = ""
    in_flight: int = 0
    down_reason: str | None = None
    refused: bool = False
    idle_since: float | None = None
    doubtful: bool = False

    def proven(self) -> None:
        """Take note that it is what it must be."""
        self.idle_since, self.doubtful = asyncio.get_running_loop().time(), False


@dataclass(order=True)
class _Waiter:
    order: int
    number: int
    avoid: Endpoint | None = field(compare=False)
    turn: asyncio.Future[Endpoint] = field(compare=False)


class EndpointPool:
    """Hands out servers, the oldest sample first; lives on one event loop.

    Args:
        urls: the servers.
        slots: requests in flight at each.
        outage_timeout_seconds: longest time without any server.
        greet: called with a server that answers again before it is used; raises
            `HiddenStateError` when it is not the server it was, `AttemptError` when it is not
            ready.
        healthy: whether a server says that it is alive.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        slots: int,
        outage_timeout_seconds: float,
        greet: Callable[[Endpoint], Awaitable[None]],
        healthy: Callable[[str], Awaitable[bool]],
    ) -> None:
        self.endpoints = [Endpoint(url) for url in dict.fromkeys(urls)]
        self._slots = slots
        self._timeout = outage_timeout_seconds
        self._greet, self._healthy = greet, healthy
        self._waiters: list[_Waiter] = []
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._outage_since: float | None = None
        self._holders: dict[asyncio.Task[object], Endpoint] = {}
        self._dropped: set[asyncio.Task[object]] = set()
        self._heart: asyncio.Task[None] | None = None
        self._final: HiddenStateError | None = None

    @property
    def in_flight(self) -> int:
        """Requests at all servers."""
        return sum(endpoint.in_flight for endpoint in self.endpoints)

    @property
    def num_up(self) -> int:
        """Servers that take requests."""
        return len(self._up())

    @property
    def waiting(self) -> int:
        """Samples that wait for a slot."""
        return len(self._waiters)

    async def acquire(self, order: int, avoid: Endpoint | None = None) -> Endpoint:
        """Wait for a slot; smaller `order` first.

        Args:
            order: position of the sample in the stream.
            avoid: server of the last failure, taken only when no other one has a slot.

        Raises:
            HiddenStateError: no server is left, or none came back in time.
        """
        if (final := self.final_error()) is not None:
            raise final
        if self._heart is None:
            self._heart = asyncio.get_running_loop().create_task(self._beat())
            self._tasks.add(self._heart)
        turn: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, _Waiter(order, next(self._numbers), avoid, turn))
        self._grant()
        try:
            endpoint = await turn
            self._holders[_current_task()] = endpoint
            return endpoint
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.release(turn.result())
            raise

    def final_error(self) -> HiddenStateError | None:
        """Return why no server will ever be handed out again, or None while one may be.

        Each call returns a new copy: one exception raised in many places collects tracebacks.
        """
        return None if self._final is None else type(self._final)(*self._final.args)

    def release(self, endpoint: Endpoint) -> None:
        """Give a slot back, in the task that took it."""
        self._holders.pop(_current_task(), None)
        endpoint.in_flight -= 1
        if not endpoint.in_flight:
            endpoint.idle_since = asyncio.get_running_loop().time()
        self._grant()

    def was_dropped(self) -> bool:
        """Whether this task was cancelled because its server has fallen silent; it may go on."""
        task = _current_task()
        if task not in self._dropped:
            return False
        self._dropped.discard(task)
        task.uncancel()
        return True

    def has_other(self, endpoint: Endpoint) -> bool:
        """Return whether another server is up."""
        return any(other is not endpoint for other in self._up())

    def mark_down(self, endpoint: Endpoint, reason: str) -> None:
        """Take a server out of use until it answers again and has been greeted."""
        if endpoint.down_reason is not None or endpoint.refused:
            return
        endpoint.down_reason = reason
        now = asyncio.get_running_loop().time()
        self._note_outage(now)
        _log.warning(
            "server %s is down (%s)%s",
            endpoint.url,
            reason,
            ""
            if self._up()
            else f"; requests wait up to {_duration(self._timeout)} for a server to come back",
        )
        task = asyncio.get_running_loop().create_task(self._recover(endpoint, now))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def refuse(self, endpoint: Endpoint, error: HiddenStateError) -> None:
        """Never use a server again; without any other, everybody who waits gets `error`."""
        if endpoint.refused:
            return
        endpoint.refused = True
        self._note_outage(asyncio.get_running_loop().time())
        if all(e.refused for e in self.endpoints):
            self._give_up(error)
        else:
            _log.error("server %s is not used any more: %s", endpoint.url, error)

    async def close(self) -> None:
        """Stop looking after servers."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _up(self) -> list[Endpoint]:
        return [e for e in self.endpoints if e.down_reason is None and not e.refused]

    def _note_outage(self, now: float) -> None:
        """Start the clock when no server is left that takes requests."""
        if not self._up() and self._outage_since is None:
            self._outage_since = now

    def _grant(self) -> None:
        """Serve waiters while there are slots."""
        while self._waiters:
            if self._waiters[0].turn.done():
                heapq.heappop(self._waiters)
                continue
            free = [e for e in self._up() if e.in_flight < self._slots]
            if not free:
                return
            waiter = heapq.heappop(self._waiters)
            chosen = min(free, key=lambda e: (e is waiter.avoid, e.in_flight))
            self._look_at(chosen)
            chosen.in_flight += 1
            waiter.turn.set_result(chosen)

    def _look_at(self, endpoint: Endpoint) -> None:
        """Doubt a server that nobody has heard of for a while."""
        since, now = endpoint.idle_since, asyncio.get_running_loop().time()
        if not endpoint.in_flight and since is not None and now - since > _IDLE_SECONDS:
            endpoint.doubtful = True

    async def _beat(self) -> None:
        """Find servers that hold requests and have fallen silent, without closing anything."""
        missed: dict[str, int] = {}
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            for endpoint in self._up():
                if not endpoint.in_flight or await self._healthy(endpoint.url):
                    missed[endpoint.url] = 0
                    continue
                missed[endpoint.url] = missed.get(endpoint.url, 0) + 1
                if missed[endpoint.url] >= _MISSED_BEATS:
                    self.mark_down(endpoint, "neither answers nor passes its health check")
                    self._drop(endpoint)

    def _drop(self, endpoint: Endpoint) -> None:
        """Wake everybody whose answer will not come."""
        for task, held in tuple(self._holders.items()):
            if held is endpoint:
                self._dropped.add(task)
                task.cancel()

    async def _recover(self, endpoint: Endpoint, since: float) -> None:
        """Look after a server until it is back, refused, or the outage lasted too long."""
        loop = asyncio.get_running_loop()
        pause = _FIRST_PROBE_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_PROBE_SECONDS)
            try:
                if await self._healthy(endpoint.url):
                    await self._greet(endpoint)
                    break
            except AttemptError as failure:
                endpoint.down_reason = failure.reason
            except HiddenStateError as error:
                self.refuse(endpoint, error)
                return
            began = self._outage_since
            if began is not None and loop.time() - began > self._timeout:
                self._give_up(HiddenStateOutageError(self._outage_text()))
                return
        _log.warning("server %s is back after %s", endpoint.url, _duration(loop.time() - since))
        endpoint.down_reason = None
        self._outage_since = None
        self._grant()

    def _outage_text(self) -> str:
        reasons = "; ".join(
            f"{e.url}: {'not used any more, see above' if e.refused else e.down_reason}"
            for e in self.endpoints
        )
        return (
            f"no server answered for {_duration(self._timeout)} "
            f"(hidden_states.fetch.outage_timeout_seconds): {reasons}. Start the server again "
            "(`speculators serve`) and repeat this command: it goes on where it stopped"
        )

    def _give_up(self, error: HiddenStateError) -> None:
        """End everybody who waits, and requests whose answer will not come: they are cancelled."""
        self._final = error
        for waiter in self._waiters:
            final = self.final_error()
            if final is not None and not waiter.turn.done():
                waiter.turn.set_exception(final)
        self._waiters.clear()
        for task in tuple(self._holders):
            task.cancel()


def _current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min"

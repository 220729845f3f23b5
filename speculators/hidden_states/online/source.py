"""States from servers, from a store, or from both: one source for every mode and policy."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from speculators.config.schema.hidden_states import (
    FetchConfig,
    HiddenStatesConfig,
    OnGenerate,
    OnMissing,
)
from speculators.errors import ConfigError
from speculators.hidden_states.online.accounting import LeftOut
from speculators.hidden_states.online.advice import Standing, advise
from speculators.hidden_states.online.checks import TeacherCheck
from speculators.hidden_states.online.connection import Connection
from speculators.hidden_states.online.fetcher import LeftOutError
from speculators.hidden_states.online.handshake import Expected
from speculators.hidden_states.online.keeper import StoreKeeper, StoreOpener
from speculators.hidden_states.online.loop import LoopThread
from speculators.hidden_states.policy import MissingStates, SourceCounts, store_advice
from speculators.hidden_states.types import HiddenStates, Tokens

_NUM_WORKERS = 4


@dataclass(frozen=True)
class _Answer:
    """What became of one sample; `reason` says why a server's states could not be had."""

    states: HiddenStates | None = None
    reason: str | None = None
    stored: bool = False


@dataclass
class _Group:
    """Samples asked for together, and what they will take in memory."""

    samples: Sequence[Tokens]
    size: int
    answers: list[Future[_Answer]] = field(default_factory=list)


class _Window:
    """Groups asked for and not taken yet, in order; what they hold is counted as they come and go.

    Args:
        fetch: how far it reaches.
    """

    def __init__(self, fetch: FetchConfig) -> None:
        self._max_samples, self._max_bytes = fetch.prefetch_samples, fetch.prefetch_bytes
        self._num_samples = self._num_bytes = 0
        self.groups: deque[_Group] = deque()

    def has_room(self, upcoming: _Group) -> bool:
        """Return whether a group may be asked for now; the one needed next always may."""
        return not self.groups or (
            self._num_samples + len(upcoming.samples) <= self._max_samples
            and self._num_bytes + upcoming.size <= self._max_bytes
        )

    def add(self, group: _Group) -> None:
        """Take in a group that was asked for."""
        self.groups.append(group)
        self._num_samples += len(group.samples)
        self._num_bytes += group.size

    def remove_first(self) -> None:
        """Let go of the oldest group."""
        group = self.groups.popleft()
        self._num_samples -= len(group.samples)
        self._num_bytes -= group.size


class OnlineSource:
    """A `HiddenStateSource` that reads a store first and asks servers for the rest.

    Works at most `prefetch_samples` and `prefetch_bytes` ahead of its consumer and delivers in the
    order asked, whatever the order of arrival. Servers are greeted before the first sample that is
    not in the store is asked for, so a full store needs no server.

    Args:
        settings: `hidden_states` of the configuration.
        layer_ids: ids the trainer reads, ascending, the last stream included.
        hidden_size: width of the verifier.
        expected: called once, before servers are greeted, with the layer ids their files must
            hold: what they must be.
        open_store: opens the configured store; None for a run without one.
        record: file for one JSON line per sample left out.
        must_keep: wait for room when the store's disk is full, instead of going on without
            keeping.

    Attributes:
        counts: samples answered for so far.

    Raises:
        ConfigError: policies that need a store or a server that is not there.
        HiddenStateError: the store cannot be used.
    """

    def __init__(
        self,
        settings: HiddenStatesConfig,
        layer_ids: Sequence[int],
        hidden_size: int,
        expected: Callable[[tuple[int, ...]], Expected],
        *,
        open_store: StoreOpener | None = None,
        record: Path | None = None,
        must_keep: bool = False,
    ) -> None:
        _check_policies(settings, open_store is not None)
        self.counts = SourceCounts()
        self._settings = settings
        self._generates = settings.on_missing is OnMissing.generate
        self._layer_ids, self._hidden_size = tuple(layer_ids), hidden_size
        self._expected = expected
        self._keeper = StoreKeeper(settings, self._layer_ids, open_store, must_keep=must_keep)
        self._missing = MissingStates(settings.on_missing, str(settings.store_path))
        self._left_out = LeftOut(settings.fetch, record)
        self._workers = ThreadPoolExecutor(_NUM_WORKERS, thread_name_prefix="hidden-states")
        self._thread = LoopThread("hidden-states-loop")
        self._opening: asyncio.Task[Connection] | None = None
        self._connection: Connection | None = None
        self._teacher: TeacherCheck | None = None
        self._advised = (time.monotonic(), 0)
        self._order = 0
        self._pending: deque[_Group] = deque()

    def start(self, sample_ids: Collection[str]) -> None:
        """Greet the servers now, unless the store has everything that will be asked for.

        Args:
            sample_ids: what will be asked for.

        Raises:
            HiddenStateError: no server in time, or one that is not what it must be.
        """
        self._keeper.start(sample_ids)
        if self._generates and not self._keeper.has_all(sample_ids):
            self._thread.call(self._connected())

    def stream(self, groups: Iterable[Sequence[Tokens]]) -> Iterator[list[HiddenStates | None]]:
        """Yield the states of each group, on the CPU; see `HiddenStateSource.stream`.

        Raises:
            HiddenStateOutageError: servers stayed away too long, or too many samples had to be
                left out; a checkpoint saved now can be gone on from.
            HiddenStateError: states that no waiting can bring.
        """
        waiting = iter(groups)
        window = _Window(self._settings.fetch)
        pending = self._pending = window.groups
        upcoming: _Group | None = None
        try:
            while True:
                upcoming = upcoming or self._next(waiting)
                while upcoming is not None and window.has_room(upcoming):
                    self._ask(upcoming)
                    window.add(upcoming)
                    upcoming = self._next(waiting)
                if not pending:
                    return
                group = pending[0]
                states = [
                    self._take(sample, answer)
                    for sample, answer in zip(group.samples, group.answers, strict=True)
                ]
                window.remove_first()
                self._keeper.done(group.samples)
                yield states
        finally:
            for group in pending:
                self._keeper.done(group.samples)
                for answer in group.answers:
                    answer.cancel()
            pending.clear()

    def close(self) -> None:
        """Drop what is under way, remove its files, close connections."""
        self._keeper.stop_waiting()
        connection, self._connection = self._connection, None
        self._thread.cancel_all()
        if connection is not None:
            self._thread.call(connection.close())
        self._thread.stop()
        self._workers.shutdown(cancel_futures=True)
        self._keeper.close()

    def gauges(self) -> dict[str, float]:
        """Return queue, requests, bytes and counts; see `HiddenStateSource.gauges`."""
        # Copied first: another thread may be streaming.
        answers = [answer for group in tuple(self._pending) for answer in tuple(group.answers)]
        values: dict[str, float] = {
            "queue_ready": sum(answer.done() for answer in answers),
            "queue_samples": len(answers),
            "unkept": self._keeper.num_unkept,
            "store_bytes": self._keeper.num_bytes,
            **vars(self.counts),
        }
        if self._connection is not None:
            counts = self._connection.counts
            values["in_flight"] = self._connection.in_flight
            values["received_bytes"] = counts.received_bytes
            values["received_tokens"] = counts.tokens
            values["retries"] = counts.retries
        if self._teacher is not None and (rate := self._teacher.agreement) is not None:
            values["teacher_agreement"] = rate
        return values

    def advice(self) -> str:
        """Return why a consumer waits and what to change; asks the servers how they are."""
        connection, path = self._connection, self._settings.store_path
        if connection is None or (connection.in_flight == 0 and connection.num_up):
            if path is not None and self.counts.stored:
                return store_advice(path)
            if connection is None:
                return "servers are being greeted"
        now, tokens = time.monotonic(), connection.counts.tokens
        since, before = self._advised
        self._advised = (now, tokens)
        gauges = self.gauges()
        standing = Standing(
            servers_up=connection.num_up,
            in_flight=connection.in_flight,
            queued=self._thread.call(connection.queued()),
            queue_ready=int(gauges["queue_ready"]),
            queue_samples=int(gauges["queue_samples"]),
            tokens_per_second=(tokens - before) / max(now - since, 1e-9),
        )
        return advise(self._settings.fetch, standing)

    def _next(self, groups: Iterator[Sequence[Tokens]]) -> _Group | None:
        samples = next(groups, None)
        if samples is None:
            return None
        tokens = sum(len(sample.input_ids) for sample in samples)
        size = tokens * len(self._layer_ids) * self._hidden_size * self._keeper.item_bytes
        return _Group(list(samples), size)

    def _ask(self, group: _Group) -> None:
        self._keeper.needs(group.samples)
        for sample in group.samples:
            group.answers.append(self._thread.submit(self._obtain(self._order, sample)))
            self._order += 1

    async def _obtain(self, order: int, sample: Tokens) -> _Answer:
        """Read one sample from the store or have it computed."""
        loop = asyncio.get_running_loop()
        if self._keeper.has(sample):
            states = await loop.run_in_executor(self._workers, self._keeper.read, sample)
            if states is not None:
                return _Answer(states, stored=True)
        if not self._generates:
            return _Answer()
        connection = self._connection or await self._connected()
        try:
            received = await connection.fetch(order, sample)
        except LeftOutError as failure:
            return _Answer(reason=failure.reason)
        last, teacher = received.states[:, -1], self._teacher
        if teacher is not None and teacher.is_due():
            await loop.run_in_executor(self._workers, teacher, last, sample, received.next_token)
        if not self._keeper.keeps:
            return _Answer(HiddenStates(received.states[:, :-1], last))
        kept = await loop.run_in_executor(self._workers, self._keeper.keep, sample, received.states)
        return _Answer(kept)

    async def _connected(self) -> Connection:
        """Return the connection; the first caller opens it, the others wait for that."""
        if self._connection is not None:
            return self._connection
        if self._opening is None:
            self._opening = asyncio.create_task(self._connect())
        return await asyncio.shield(self._opening)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        served = self._keeper.served_layer_ids
        expected = await loop.run_in_executor(self._workers, self._expected, served)
        fetch = self._settings.fetch
        connection = await Connection.open(self._settings.endpoints, fetch, expected, self._workers)
        try:
            self._keeper.begin(connection.greeting)
        except BaseException:
            await connection.close()
            raise
        self._teacher = TeacherCheck(
            expected.head,
            every=fetch.teacher_check_every,
            min_agreement=fetch.min_teacher_agreement,
        )
        self._connection = connection
        return connection

    def _take(self, sample: Tokens, answer: Future[_Answer]) -> HiddenStates | None:
        """Wait for one sample and account for it."""
        result = answer.result()
        if result.states is not None:
            self.counts.stored += result.stored
            self.counts.generated += not result.stored
            self._left_out.delivered()
            return result.states
        self.counts.left_out += 1
        if result.reason is None:
            self._missing.leave_out(sample)
        else:
            self._left_out.add(sample.sample_id, result.reason)
        return None


def _check_policies(settings: HiddenStatesConfig, has_store: bool) -> None:
    generates = settings.on_missing is OnMissing.generate
    if generates and not settings.endpoints:
        raise ConfigError(
            "hidden_states.on_missing=generate: needs a server: give "
            "hidden_states.endpoints=[http://localhost:8000/v1]"
        )
    if not has_store and not generates:
        raise ConfigError(
            f"hidden_states.on_missing={settings.on_missing.value}: without generate, states come "
            "from a store: give hidden_states.store_path=DIR"
        )
    if not has_store and settings.on_generate is OnGenerate.cache:
        raise ConfigError("hidden_states.on_generate=cache: needs hidden_states.store_path=DIR")

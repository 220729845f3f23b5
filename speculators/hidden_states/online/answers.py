"""Answers from servers: conversations are carried on side by side and delivered in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from speculators.config.schema.hidden_states import HiddenStatesConfig
from speculators.data.dialogue import Answer, Dialogue
from speculators.hidden_states.online.accounting import LeftOut
from speculators.hidden_states.online.completions import Ask
from speculators.hidden_states.online.connection import Connection
from speculators.hidden_states.online.fetcher import LeftOutError
from speculators.hidden_states.online.handshake import Expected
from speculators.hidden_states.online.loop import LoopThread


class OnlineAnswers:
    """An `Answerer` that asks servers, with the retries and pauses of every other request.

    At most `prefetch_samples` conversations are under way; of each, one question at a time.
    Servers are greeted before the first question that no earlier start has answered.

    Args:
        settings: `hidden_states` of the configuration.
        layer_ids: ids the servers' files hold, ascending, the last stream included.
        expected: called once, before servers are greeted: what they must be.
        stop_ids: tokens that end an answer.
    """

    def __init__(
        self,
        settings: HiddenStatesConfig,
        layer_ids: Sequence[int],
        expected: Callable[[tuple[int, ...]], Expected],
        stop_ids: Collection[int],
    ) -> None:
        self._settings = settings
        self._layer_ids = tuple(layer_ids)
        self._expected = expected
        self._stop_ids = sorted(stop_ids)

    def carry_on(self, dialogues: Iterable[Dialogue]) -> Iterator[Dialogue]:
        """Take every dialogue to its end, and yield them in the order given.

        Raises:
            HiddenStateError: no server in time, one that is not what it must be, servers that
                stayed away too long, or too many conversations that could not be answered.
        """
        run = _Run(self._settings, self._layer_ids, self._expected, self._stop_ids)
        left_out = LeftOut(self._settings.fetch, None)
        waiting, pending = iter(dialogues), deque[tuple[Dialogue, Future[None]]]()
        try:
            for order, dialogue in enumerate(waiting):
                pending.append((dialogue, run.submit(order, dialogue)))
                if len(pending) >= self._settings.fetch.prefetch_samples:
                    yield _finished(pending, left_out)
            while pending:
                yield _finished(pending, left_out)
        finally:
            run.close()


def _finished(pending: deque[tuple[Dialogue, Future[None]]], left_out: LeftOut) -> Dialogue:
    """Wait for the oldest conversation and account for it."""
    dialogue, end = pending.popleft()
    end.result()
    if dialogue.failure:
        left_out.add(dialogue.name, dialogue.failure)
    else:
        left_out.delivered()
    return dialogue


class _Run:
    """One preparation: threads and a connection that is opened when it is needed."""

    def __init__(
        self,
        settings: HiddenStatesConfig,
        layer_ids: tuple[int, ...],
        expected: Callable[[tuple[int, ...]], Expected],
        stop_ids: Sequence[int],
    ) -> None:
        self._settings, self._layer_ids, self._expected = settings, layer_ids, expected
        self._stop_ids = stop_ids
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="greeting")
        # Templates and tokenizers are not made for several threads, and would block the loop.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="dialogues")
        self._thread = LoopThread("answers-loop")
        self._opening = asyncio.Lock()
        self._connection: Connection | None = None

    def submit(self, order: int, dialogue: Dialogue) -> Future[None]:
        """Begin to carry on one dialogue."""
        return self._thread.submit(self._carry_on(order, dialogue))

    def close(self) -> None:
        """Drop what is under way, remove its files, close connections."""
        self._thread.cancel_all()
        connection, self._connection = self._connection, None
        if connection is not None:
            self._thread.call(connection.close())
        self._thread.stop()
        self._writer.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)

    async def _carry_on(self, order: int, dialogue: Dialogue) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, dialogue.begin)
        while (question := dialogue.question) is not None:
            connection = await self._connected()
            request = Ask(
                question.prompt,
                question.max_new_tokens,
                question.temperature,
                question.seed,
                self._stop_ids,
            )
            try:
                written = await connection.ask(order, request)
            except LeftOutError as failure:
                await loop.run_in_executor(self._writer, dialogue.refuse, failure.reason)
                return
            engine = connection.greeting.engine
            answer = Answer(written.token_ids, written.finish_reason, engine)
            await loop.run_in_executor(self._writer, dialogue.take, answer)

    async def _connected(self) -> Connection:
        """Return the connection; the first caller opens it, the others wait for that."""
        async with self._opening:
            if self._connection is None:
                loop = asyncio.get_running_loop()
                expected = await loop.run_in_executor(
                    self._readers, self._expected, self._layer_ids
                )
                endpoints, fetch = self._settings.endpoints, self._settings.fetch
                self._connection = await Connection.open(endpoints, fetch, expected, self._readers)
            return self._connection

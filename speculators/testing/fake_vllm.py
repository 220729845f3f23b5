"""A vLLM server that is none: extraction, greedy answers, counters, over HTTP, in a thread.

It does what vLLM 0.32 was measured to do (vLLM specification, section 2): a request's lock file
is created and locked before the answer, the answer names the file before it exists, the file
appears later with mode 0600, the lock is released when writing ended or failed, and the layers
stand in ascending order whatever order was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import socket
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from aiohttp import web
from safetensors.torch import save
from torch import Tensor

from speculators.testing.draft_counters import DraftCounters, DraftingFunction
from speculators.testing.fake_answers import completion, error_body, send, spoil
from speculators.testing.fake_stream import stream_answer
from speculators.testing.faults import Call, Fault, FaultKind, FaultPlan

StatesFunction = Callable[[Sequence[int], Sequence[int]], tuple[Tensor, int]]
"""(token ids, ascending layer ids) -> (states `token layer hidden`, greedy next token)."""

AnswerFunction = Callable[[Sequence[int], int, Sequence[int]], list[int]]
"""(token ids, longest answer, ids that end it) -> greedy answer, the id that ended it included."""

_K = FaultKind
_SMALL_BYTES = 2**20


class _Listening(socket.socket):
    """A listening socket that remembers what it accepted: the system closes all a dead one had."""

    def __init__(self, port: int) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self._accepted: list[socket.socket] = []
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.bind(("127.0.0.1", port))

    def accept(self) -> tuple[socket.socket, Any]:
        accepted, address = super().accept()
        self._accepted.append(accepted)
        return accepted, address

    def close_accepted(self) -> None:
        """Close every connection; twice does no harm."""
        for accepted in self._accepted:
            accepted.close()


class FakeVLLM:
    """An HTTP server with the extraction protocol, run in a background thread.

    Args:
        folder: where the files go; created when missing.
        drafting: makes it a server of a checkpoint, which drafts, counts and extracts nothing.
        num_draft_tokens: tokens per draft of such a server.
        called: what the server calls that folder in its answers, as in a container.
        layer_ids: ids to extract, in any order.
        states: computes states and next token of a prompt.
        answers: computes longer answers; None takes one token after another from `states`.
        model: name in `/v1/models` and in requests.
        root: path or hub id of the model; `model` when None.
        max_model_len: prompt and generated tokens together.
        dtype: number format of the files.
        latency_seconds: time every request spends in the engine.
        file_delay_seconds: time between the answer and the file.
        capacity: requests in the engine at a time; the others wait.
        port: 0 takes a free one, which a restart takes again.
        api_key: wanted in the Authorization header, when not None.
        version: answer of `/version`.

    Attributes:
        faults: what goes wrong; may be changed at any time.
        calls: every completion received, in order.
        running: requests in the engine now.
        most_running: the largest number of requests that were in the engine at once.
    """

    def __init__(
        self,
        folder: Path | str,
        layer_ids: Sequence[int],
        states: StatesFunction,
        *,
        answers: AnswerFunction | None = None,
        drafting: DraftingFunction | None = None,
        num_draft_tokens: int = 1,
        called: str | None = None,
        model: str = "toy",
        root: str | None = None,
        max_model_len: int = 4096,
        dtype: torch.dtype = torch.float32,
        latency_seconds: float = 0.0,
        file_delay_seconds: float = 0.0,
        capacity: int = 64,
        port: int = 0,
        api_key: str | None = None,
        version: str = "0.32.0",
    ) -> None:
        self.folder = Path(folder)
        self.called = self.folder if called is None else Path(called)
        self.layer_ids = sorted(set(layer_ids))
        self.states = states
        self.answers = answers or self._one_by_one
        self.drafting = drafting
        self.counters = DraftCounters(num_draft_tokens, model)
        self.model, self.root, self.version = model, root or model, version
        self.max_model_len, self.dtype, self.api_key = max_model_len, dtype, api_key
        self.latency_seconds, self.file_delay_seconds = latency_seconds, file_delay_seconds
        self.capacity, self.port = capacity, port
        self.healthy = True
        self.faults = FaultPlan()
        self.calls: list[Call] = []
        self.most_running = 0
        self.running = self._entered = 0
        self._numbers = itertools.count()
        self._locks: set[int] = set()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Base URL as it is configured: `http://127.0.0.1:PORT/v1`."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> FakeVLLM:
        """Start serving and return when connections are accepted; also after a death."""
        self.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        ready: threading.Event = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        if not ready.wait(60):
            raise RuntimeError("the fake server did not start")
        return self

    def stop(self) -> None:
        """Cut every connection and stop, as a killed server does. `start` serves again."""
        if self._thread is None:
            return
        with contextlib.suppress(RuntimeError):  # it is dead already
            self._loop.call_soon_threadsafe(self._halt.set)
        self._thread.join()
        self._thread = None

    def __enter__(self) -> FakeVLLM:
        """Start."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    def _serve(self, ready: threading.Event) -> None:
        with ThreadPoolExecutor(8, thread_name_prefix="fake-writer") as self._writers:
            asyncio.run(self._main(ready))
        # What the system does for a process that died.
        self._listening.close_accepted()
        while self._locks:
            os.close(self._locks.pop())

    async def _main(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._halt = asyncio.Event()
        self._slots = asyncio.Semaphore(self.capacity)
        app = web.Application(client_max_size=2**28)
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._completions)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await runner.setup()
        self._listening = _Listening(self.port)
        site = web.SockSite(runner, self._listening)
        await site.start()
        self.port = runner.addresses[0][1]
        ready.set()
        await self._halt.wait()
        await site.stop()
        await _let_others_run()  # what was just accepted becomes a connection that can be cut
        for connection in runner.server.connections if runner.server else ():
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()
        await _let_others_run()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": self.version})

    async def _metrics(self, request: web.Request) -> web.Response:
        """Answer as vLLM does: one line for each engine."""
        labels = f'{{engine="0",model_name="{self.model}"}}'
        numbers = {"running": self.running, "waiting": self._entered - self.running}
        lines = [f"vllm:num_requests_{name}{labels} {float(n)}\n" for name, n in numbers.items()]
        gauges = "# TYPE vllm:num_requests_running gauge\n" + "".join(lines)
        return web.Response(text=gauges + self.counters.text())

    async def _models(self, request: web.Request) -> web.Response:
        self._authorize(request)
        card = {
            "id": self.model,
            "object": "model",
            "owned_by": "vllm",
            "root": self.root,
            "parent": None,
            "max_model_len": self.max_model_len,
        }
        return web.json_response({"object": "list", "data": [card]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        self._authorize(request)
        body = await request.json()
        prompt = self._checked_prompt(body)
        name = request.headers.get("X-Request-Id", uuid.uuid4().hex[:16])
        request_id = f"cmpl-{name}-0-{uuid.uuid4().hex[:8]}"
        longest = body.get("max_tokens", 16)
        call = Call(next(self._numbers), tuple(prompt), request_id, longest)
        self.calls.append(call)
        fault = self.faults.take(call)
        early = await self._fail_early(request, fault)
        if early is not None:
            return early
        if self.drafting is not None:
            return await self._draft(request, call, fault, body)
        path = self.folder / f"{request_id}.safetensors"
        lock = _locked(path) if not (fault and fault.kind is _K.no_lock) else None
        if lock is not None:
            self._locks.add(lock)
        self._entered += 1
        try:
            states, tokens = await self._compute(prompt, longest, body.get("stop_token_ids") or ())
        finally:
            self._entered -= 1
        tensors = spoil(states.to(self.dtype), torch.tensor(prompt), fault)
        delay = fault.seconds if fault and fault.kind is _K.late_file else self.file_delay_seconds
        self._loop.call_later(delay, self._begin_writing, path, tensors, lock, fault)
        named = str(self.called / path.name)
        answer = completion(call, self.model, prompt, tokens, named, fault, body)
        return await send(request, answer, fault)

    async def _compute(
        self, prompt: list[int], longest: int, stops: Sequence[int]
    ) -> tuple[Tensor, list[int]]:
        """Wait for a place in the engine, and as long as it takes."""
        async with self._slots:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            try:
                states, token = self.states(prompt, self.layer_ids)
                tokens = self.answers(prompt, longest, stops) if longest > 1 else [token]
                if self.latency_seconds:
                    await asyncio.sleep(self.latency_seconds)
                return states, list(tokens)
            finally:
                self.running -= 1

    async def _draft(
        self, request: web.Request, call: Call, fault: Fault | None, body: dict[str, Any]
    ) -> web.StreamResponse:
        assert self.drafting is not None
        stops = body.get("stop_token_ids") or ()
        async with self._slots:
            tokens, accepted = self.drafting(call.token_ids, call.max_tokens, stops)
        # The counters follow the answer, as they do in vLLM.
        self._loop.call_later(self.file_delay_seconds, self.counters.count, accepted)
        if body.get("stream"):
            return await stream_answer(request, call, tokens, accepted, stops)
        prompt = list(call.token_ids)
        answer = completion(call, self.model, prompt, list(tokens), None, fault, body)
        return await send(request, answer, fault)

    def _one_by_one(self, prompt: Sequence[int], longest: int, stops: Sequence[int]) -> list[int]:
        answer: list[int] = []
        while len(answer) < longest and not (answer and answer[-1] in stops):
            answer.append(self.states([*prompt, *answer], self.layer_ids)[1])
        return answer

    def _authorize(self, request: web.Request) -> None:
        wanted = f"Bearer {self.api_key}"
        if self.api_key is not None and request.headers.get("Authorization") != wanted:
            raise web.HTTPUnauthorized(text='{"error": "Unauthorized"}')

    def _checked_prompt(self, body: dict[str, Any]) -> list[int]:
        if body.get("model") != self.model:
            message = f"The model `{body.get('model')}` does not exist."
            raise web.HTTPNotFound(text=error_body(message, "NotFoundError", 404))
        prompt = body["prompt"]
        asked = len(prompt) + body.get("max_tokens", 16)
        if asked > self.max_model_len:
            message = (
                f"This model's maximum context length is {self.max_model_len} tokens. "
                f"However, your request needs {asked}."
            )
            raise web.HTTPBadRequest(text=error_body(message, "BadRequestError", 400))
        return prompt

    async def _fail_early(self, request: web.Request, fault: Fault | None) -> web.Response | None:
        if fault is None:
            return None
        if fault.kind is _K.status:
            text = error_body(fault.message, "InjectedError", fault.status)
            return web.Response(status=fault.status, text=text, content_type="application/json")
        if fault.kind is _K.reset:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if fault.kind is _K.hang:
            await asyncio.sleep(fault.seconds)
        if fault.kind is _K.death:
            self._halt.set()
            await asyncio.Event().wait()
        return None

    def _begin_writing(
        self, path: Path, tensors: dict[str, Tensor], lock: int | None, fault: Fault | None
    ) -> None:
        """Write small files on the spot: a thread would cost more than the writing."""
        if tensors["hidden_states"].nbytes < _SMALL_BYTES:
            self._write(path, tensors, lock, fault)
        else:
            self._writers.submit(self._write, path, tensors, lock, fault)

    def _write(
        self, path: Path, tensors: dict[str, Tensor], lock: int | None, fault: Fault | None
    ) -> None:
        try:
            if fault is None or fault.kind is not _K.missing_file:
                data = save(tensors)
                if fault is not None and fault.kind is _K.truncated_file:
                    data = data[: len(data) * 2 // 3]
                descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
        finally:
            stuck = fault is not None and fault.kind is _K.stuck_lock
            if lock is not None and not stuck:
                self._locks.discard(lock)
                os.close(lock)


async def _let_others_run() -> None:
    """Give the event loop as many turns as opening or closing a connection takes, and more."""
    for _ in range(20):
        await asyncio.sleep(0)


def _locked(path: Path) -> int:
    descriptor = os.open(f"{path}.lock", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor

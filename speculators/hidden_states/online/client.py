"""The requests the project makes to a vLLM server, and what their answers mean."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from speculators.errors import HiddenStateError
from speculators.hidden_states.online.completions import Ask, choice_of, states_path
from speculators.hidden_states.online.failures import (
    BusyError,
    ForbiddenError,
    RejectedError,
    ServerTroubleError,
)
from speculators.hidden_states.online.streaming import Streamed, events

REQUEST_PREFIX = "hs-"
"""Request ids begin so; vLLM puts them into the names of its files."""

_KEEP_ALIVE_SECONDS = 4.0
"""Below the 5 s after which vLLM closes an idle connection: a request never meets the closing."""

_QUEUED = re.compile(r"^vllm:num_requests_waiting(?:\{[^}]*\})? ([0-9.e+]+)\s*$", re.MULTILINE)

_BUSY = frozenset({425, 429})
_FORBIDDEN = frozenset({401, 403})


@dataclass(frozen=True)
class ServedModel:
    """What `/v1/models` says.

    Attributes:
        name: the name to use in requests; may be an alias.
        root: path or hub id.
        max_model_len: longest prompt plus generated tokens.
    """

    name: str
    root: str
    max_model_len: int | None


@dataclass(frozen=True)
class Generated:
    """Tokens a server wrote.

    Attributes:
        token_ids: new tokens, the one it stopped at included.
        finish_reason: `stop` or `length`.
        path: file of the prompt's states, which a server started for extraction writes for every
            request; None where there is none.
    """

    token_ids: list[int]
    finish_reason: str
    path: str | None


def base_url(endpoint: str) -> str:
    """Return an endpoint without a trailing slash and without `/v1`."""
    return endpoint.rstrip("/").removesuffix("/v1").rstrip("/")


class VllmClient:
    """Requests over one keep-alive session; lives on one event loop.

    Args:
        timeout_seconds: longest wait for one answer.
    """

    def __init__(self, timeout_seconds: float) -> None:
        key = os.environ.get("VLLM_API_KEY")
        self.tag = f"{REQUEST_PREFIX}{uuid.uuid4().hex[:8]}"
        self._numbers = itertools.count()
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=30)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS, socket_factory=_watched_socket
            ),
            headers={"Authorization": f"Bearer {key}"} if key else None,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=self._timeout,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def healthy(self, url: str) -> bool:
        """Return whether the server says that its engine is alive."""
        short = aiohttp.ClientTimeout(total=10)
        try:
            async with self._session.get(f"{url}/health", timeout=short) as response:
                return response.status == 200
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False

    async def num_queued(self, url: str) -> int | None:
        """Return how many requests the server has and does not work on yet; None: it is silent."""
        short = aiohttp.ClientTimeout(total=2)
        try:
            async with self._session.get(f"{url}/metrics", timeout=short) as response:
                text = (await response.read()).decode(errors="replace")
        except (TimeoutError, aiohttp.ClientError, OSError):
            return None
        found = _QUEUED.findall(text)
        return round(sum(map(float, found))) if found else None

    async def version(self, url: str) -> str:
        """Return the server's version; empty when it does not say."""
        try:
            answer = await self._exchange("GET", f"{url}/version")
        except RejectedError:
            return ""
        return str(answer.get("version", ""))

    async def served_model(self, url: str) -> ServedModel:
        """Return the first model of `/v1/models`.

        Raises:
            HiddenStateError: the server lists none.
            AttemptError: no answer.
        """
        answer = await self._exchange("GET", f"{url}/v1/models")
        cards = answer.get("data")
        if not isinstance(cards, list) or not cards or "id" not in cards[0]:
            raise HiddenStateError(f"hidden_states.endpoints: {url} serves no model")
        card = cards[0]
        return ServedModel(card["id"], card.get("root") or card["id"], card.get("max_model_len"))

    async def generate(self, url: str, model: str, ask: Ask) -> Generated:
        """Let the model write (data specification, section 8): token ids in, token ids out.

        Args:
            url: the server.
            model: name of the model there.
            ask: the prompt, and how it is to be continued.

        Raises:
            AttemptError: no usable answer.
        """
        answer = await self._exchange("POST", **self._completion(url, ask.body(model)))
        choice = choice_of(answer)
        ask.check(choice)
        return Generated(choice["token_ids"], choice["finish_reason"], states_path(answer))

    async def stream(self, url: str, model: str, ask: Ask) -> Streamed:
        """Let the model write as `generate` does, and note when each piece arrives.

        Raises:
            AttemptError: no usable answer.
        """
        answer, began = Streamed(), time.perf_counter()
        sent = self._completion(url, {**ask.body(model), "stream": True})
        async with self._request("POST", **sent) as response:
            if response.status != 200:
                raise _refusal(response, await response.read())
            async for event in events(response.content.iter_any()):
                answer.add(event, time.perf_counter() - began)
        ask.check(vars(answer))
        return answer

    async def metrics(self, url: str) -> str:
        """Return what `/metrics` says, in Prometheus' text format.

        Raises:
            AttemptError: no answer.
        """
        return (await self._read("GET", f"{url}/metrics")).decode(errors="replace")

    def _completion(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return where a request for a completion goes, and what is sent."""
        headers = {
            "Content-Type": "application/json",
            "X-Request-Id": f"{self.tag}-{next(self._numbers)}",
        }
        return {
            "url": f"{url}/v1/completions",
            "data": json.dumps(body).encode(),
            "headers": headers,
        }

    async def _exchange(self, method: str, url: str, **options: Any) -> dict[str, Any]:
        body = await self._read(method, url, **options)
        try:
            answer = json.loads(body)
        except ValueError:
            raise ServerTroubleError(f"answer of {len(body)} bytes is no JSON") from None
        if not isinstance(answer, dict):
            raise ServerTroubleError("answer is no JSON object")
        return answer

    async def _read(self, method: str, url: str, **options: Any) -> bytes:
        async with self._request(method, url, **options) as response:
            body = await response.read()
            if response.status != 200:
                raise _refusal(response, body)
            return body

    @asynccontextmanager
    async def _request(
        self, method: str, url: str, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; what breaks until its answer is read becomes an `AttemptError`."""
        try:
            async with self._session.request(method, url, **options) as response:
                yield response
        except TimeoutError:
            seconds = self._timeout.total
            raise ServerTroubleError(f"no answer within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ServerTroubleError(_brief(error)) from error


def _watched_socket(address: Any) -> socket.socket:
    """Make a socket that notices within half a minute that the other machine is gone."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


def _brief(error: BaseException) -> str:
    """Return one line about a connection failure; aiohttp's texts name every detail twice."""
    cause = error.__cause__ if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and cause.strerror:
        text = cause.strerror if cause.errno and cause.errno > 0 else str(cause)
        return text[:200]
    return f"{type(error).__name__}: {error}"[:200].rstrip(": ")


def _refusal(
    response: aiohttp.ClientResponse, body: bytes
) -> BusyError | RejectedError | ServerTroubleError:
    """Return what a status other than 200 means."""
    reason = f"HTTP {response.status}: {_message(body)}"
    if response.status in _BUSY:
        after = response.headers.get("Retry-After", "")
        return BusyError(reason, float(after) if after.isdecimal() else 0.0)
    if response.status >= 500 or response.status == 408:
        return ServerTroubleError(reason)
    if response.status in _FORBIDDEN:
        return ForbiddenError(f"{reason}; the server's key is taken from VLLM_API_KEY")
    return RejectedError(reason)


def _message(body: bytes) -> str:
    """Return the server's own words out of an error body, shortened."""
    text = body.decode(errors="replace")
    try:
        parsed = json.loads(text)
        error = parsed.get("error", parsed)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300] or "no message"

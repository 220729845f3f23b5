"""An answer as it arrives: server-sent events of a streamed completion."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from speculators.hidden_states.online.failures import ServerTroubleError

_DATA = b"data:"
_DONE = b"[DONE]"


@dataclass
class Streamed:
    """An answer and when its tokens came; a server that drafts sends several at once.

    Attributes:
        token_ids: new tokens, the one it stopped at included.
        arrivals: (seconds since the request was sent, tokens) of every piece.
        finish_reason: `stop` or `length`; empty while it is still coming.
        prompt_token_ids: the prompt as the server repeats it.
    """

    token_ids: list[int] = field(default_factory=list)
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    finish_reason: str = ""
    prompt_token_ids: list[int] | None = None

    @property
    def first_seconds(self) -> float:
        """Time to the first token."""
        return self.arrivals[0][0]

    @property
    def last_seconds(self) -> float:
        """Time to the last token."""
        return self.arrivals[-1][0]

    def add(self, event: dict[str, Any], seconds: float) -> None:
        """Take one event, `seconds` after the request was sent.

        Raises:
            ServerTroubleError: an error the server reports within its answer.
        """
        if "error" in event:
            raise ServerTroubleError(f"answer broke off: {event['error']}")
        for choice in event.get("choices") or ():
            self.prompt_token_ids = choice.get("prompt_token_ids") or self.prompt_token_ids
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            if tokens := choice.get("token_ids"):
                self.token_ids += tokens
                self.arrivals.append((seconds, len(tokens)))


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON of every event up to the closing one.

    Args:
        chunks: the body, cut anywhere.

    Raises:
        ServerTroubleError: the stream ends early, or holds something else.
    """
    async for line in _lines(chunks):
        if not line.startswith(_DATA):
            continue
        body = line.removeprefix(_DATA).strip()
        if body == _DONE:
            return
        try:
            event = json.loads(body)
        except ValueError:
            raise ServerTroubleError(f"stream holds {len(body)} bytes that are no JSON") from None
        if not isinstance(event, dict):
            raise ServerTroubleError("stream holds an event that is no JSON object")
        yield event
    raise ServerTroubleError("stream ended before the answer did")


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut a body into lines of any length; the first event repeats the whole prompt."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line

"""A completion as vLLM streams it: server-sent events, one for what each verify call gave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence

from aiohttp import web

from speculators.testing.faults import Call


async def stream_answer(
    request: web.Request,
    call: Call,
    tokens: Sequence[int],
    accepted: Sequence[int],
    stop_ids: Sequence[int],
    piece_seconds: float = 0.0,
) -> web.StreamResponse:
    """Send the answer piece by piece.

    Args:
        request: what is answered.
        call: the completion.
        tokens: the answer.
        accepted: accepted tokens of each draft; without any, tokens come one by one.
        stop_ids: tokens that end an answer.
        piece_seconds: pause before each piece.
    """
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    pieces = list(_pieces(tokens, accepted))
    for number, piece in enumerate(pieces):
        if piece_seconds:
            await asyncio.sleep(piece_seconds)
        reason = None
        if number == len(pieces) - 1:
            reason = "stop" if piece[-1] in stop_ids else "length"
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": reason}
        choice |= {"stop_reason": None, "token_ids": piece}
        if number == 0:
            choice["prompt_token_ids"] = list(call.token_ids)
        event = {"id": call.request_id, "object": "text_completion", "choices": [choice]}
        await response.write(f"data: {json.dumps(event)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _pieces(tokens: Sequence[int], accepted: Sequence[int]) -> Iterator[list[int]]:
    """Cut an answer: the prefill's token, then those of every verify call."""
    rest = list(tokens)
    sizes = [1, *(count + 1 for count in accepted)] if accepted else [1] * len(rest)
    for size in sizes:
        if rest:
            yield rest[:size]
        rest = rest[size:]

"""What a fake server writes and answers: states, completions and errors, right or wrong as told."""

from __future__ import annotations

import json
from typing import Any

import torch
from aiohttp import web
from jaxtyping import Float
from torch import Tensor

from speculators.testing.faults import Call, Fault, FaultKind

_K = FaultKind


def error_body(message: str, kind: str, code: int) -> str:
    """Return an error as the server words it."""
    body = {"message": message, "type": kind, "param": None, "code": code}
    return json.dumps({"error": body})


def spoil(
    states: Float[Tensor, "token layer hidden"], tokens: Tensor, fault: Fault | None
) -> dict[str, Tensor]:
    """Return the file's tensors, made wrong in the way `fault` says."""
    kind = fault.kind if fault else None
    states = states.clone() if kind in (_K.nan, _K.zeros) else states
    if kind is _K.nan:
        states[-1, 0, 0] = torch.nan
    elif kind is _K.zeros:
        states[len(states) // 2, -1] = 0
    elif kind is _K.fewer_rows:
        states = states[:-1]
    elif kind is _K.wrong_layers:
        states = states[:, :-1]
    elif kind is _K.loud:
        states = states * 1000
    elif kind is _K.foreign_file:
        tokens = tokens.flip(0) + 1
    return {"hidden_states": states.contiguous(), "token_ids": tokens.contiguous()}


def completion(
    call: Call,
    model: str,
    prompt: list[int],
    tokens: list[int],
    path: str | None,
    fault: Fault | None,
    body: dict[str, Any],
) -> dict[str, Any]:
    """Return the completion; token ids only when asked for, as the server does."""
    kind = fault.kind if fault else None
    ended = tokens[-1] in (body.get("stop_token_ids") or ())
    choice: dict[str, Any] = {
        "index": 0,
        "text": " token",
        "logprobs": None,
        "finish_reason": "stop" if ended else "length",
        "stop_reason": None,
        "token_ids": None,
        "prompt_token_ids": None,
    }
    if body.get("return_token_ids"):
        echo = [*prompt[:-1], prompt[-1] + 1] if kind is _K.wrong_echo else prompt
        choice |= {"token_ids": tokens, "prompt_token_ids": echo}
    named = fault.path if fault is not None and kind is _K.path else path
    nothing = kind is _K.no_path or named is None
    parameters = None if nothing else {"hidden_states_path": named}
    return {
        "id": call.request_id,
        "object": "text_completion",
        "model": model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": len(prompt),
            "total_tokens": len(prompt) + len(tokens),
            "completion_tokens": len(tokens),
        },
        "kv_transfer_params": parameters,
    }


async def send(
    request: web.Request, answer: dict[str, Any], fault: Fault | None
) -> web.StreamResponse:
    """Send a completion, or as much of it as the fault lets through."""
    data = json.dumps(answer).encode()
    kind = fault.kind if fault else None
    if kind is _K.truncated_json:
        data = data[: len(data) // 2]
    if kind is not _K.truncated_body:
        return web.Response(body=data, content_type="application/json")
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(data)
    await response.prepare(request)
    await response.write(data[: len(data) // 2])
    if request.transport is not None:
        request.transport.abort()
    return response

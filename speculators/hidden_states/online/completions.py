"""What a request for a completion says, and what its answer must hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from speculators.hidden_states.online.failures import BadStatesError, ServerTroubleError


def asking(
    model: str,
    prompt: list[int],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    stop_ids: Sequence[int],
) -> dict[str, Any]:
    """Return the body of a request for an answer, sampling pinned to nothing but temperature."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "seed": seed,
        "stop_token_ids": sorted(stop_ids),
    }


def choice_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the first choice, which must hold tokens."""
    try:
        choice = answer["choices"][0]
        tokens, echo = choice["token_ids"], choice["prompt_token_ids"]
    except (KeyError, IndexError, TypeError):
        tokens, echo = None, None
    if not (isinstance(tokens, list) and tokens and all(type(t) is int for t in tokens)) or (
        echo is None
    ):
        raise ServerTroubleError("answer without choices[0].token_ids")
    return choice


def check_echo(choice: dict[str, Any], prompt: list[int]) -> None:
    """Hold that an answer belongs to the prompt that was sent."""
    echo = choice["prompt_token_ids"]
    if echo != prompt:
        raise BadStatesError(f"answer is for another prompt: {first_difference(echo, prompt)}")


def check_answer(tokens: list[int], reason: Any, body: dict[str, Any]) -> str:
    """Hold that an answer is whole, ends where asked, and fits; return why it ended."""
    if reason not in ("stop", "length"):
        raise ServerTroubleError(f"answer ended by {reason!r}")
    stops, most = body["stop_token_ids"], body["max_tokens"]
    early = next((i for i, token in enumerate(tokens[:-1]) if token in stops), None)
    if early is not None:
        raise BadStatesError(f"answer goes on behind the end of the turn (token {early})")
    if len(tokens) > most:
        raise BadStatesError(f"answer of {len(tokens)} tokens (allowed {most})")
    return reason


def states_path(answer: dict[str, Any]) -> str | None:
    """Return the file of states an answer names, or None."""
    parameters = answer.get("kv_transfer_params")
    path = parameters.get("hidden_states_path") if isinstance(parameters, dict) else None
    return path if isinstance(path, str) and path else None


def first_difference(got: Any, wanted: Sequence[int]) -> str:
    """Return where two token sequences part, in a few words."""
    if not isinstance(got, list):
        return f"no list of tokens but {type(got).__name__}"
    if len(got) != len(wanted):
        return f"{len(got)} tokens instead of {len(wanted)}"
    index = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b), 0)
    return f"token {index} is {got[index]} instead of {wanted[index]}"

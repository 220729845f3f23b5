"""What a request for a completion says, and what its answer must hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from speculators.hidden_states.online.failures import BadStatesError, ServerTroubleError


@dataclass(frozen=True)
class Ask:
    """A prompt to be continued.

    Attributes:
        prompt: its tokens.
        max_new_tokens: longest answer.
        temperature: 0 is greedy.
        seed: of the draws.
        stop_ids: tokens that end the answer, beside the model's own.
        cache_salt: requests share cached prefixes only with those of the same salt.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stop_ids: Sequence[int] = ()
    cache_salt: str | None = None

    def body(self, model: str) -> dict[str, Any]:
        """Return the request, with nothing of the model's generation config in effect.

        A repetition penalty from there would move a greedy token away from the teacher's.
        """
        salt = {} if self.cache_salt is None else {"cache_salt": self.cache_salt}
        return {
            "model": model,
            "prompt": list(self.prompt),
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": self.seed,
            "stop_token_ids": sorted(self.stop_ids),
            "return_token_ids": True,
            **salt,
        }

    def check(self, choice: dict[str, Any]) -> None:
        """Hold that a choice has tokens, answers this prompt, is whole, ends where asked, and fits.

        Raises:
            AttemptError: it does not.
        """
        tokens, echo = choice.get("token_ids"), choice.get("prompt_token_ids")
        if not (isinstance(tokens, list) and tokens and all(type(t) is int for t in tokens)) or (
            echo is None
        ):
            raise ServerTroubleError("answer without choices[0].token_ids")
        if echo != list(self.prompt):
            difference = first_difference(echo, self.prompt)
            raise BadStatesError(f"answer is for another prompt: {difference}")
        if (reason := choice.get("finish_reason")) not in ("stop", "length"):
            raise ServerTroubleError(f"answer ended by {reason!r}")
        early = next((i for i, token in enumerate(tokens[:-1]) if token in self.stop_ids), None)
        if early is not None:
            raise BadStatesError(f"answer goes on behind the end of the turn (token {early})")
        if len(tokens) > self.max_new_tokens:
            raise BadStatesError(f"answer of {len(tokens)} tokens (allowed {self.max_new_tokens})")


def choice_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the first choice; empty where there is none."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    return choice if isinstance(choice, dict) else {}


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

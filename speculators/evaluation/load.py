"""How fast a server answers: latency and throughput with so many requests at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from speculators.evaluation.engine_metrics import DraftCounters
from speculators.hidden_states.online.client import VllmClient
from speculators.hidden_states.online.completions import Ask
from speculators.hidden_states.online.failures import AttemptError
from speculators.hidden_states.online.streaming import Streamed

SPEED_DEFINITION = (
    "first token = time from sending a request to its first token; inter-token latency = time from "
    "the first to the last token of an answer over its tokens minus one; "
    "throughput = answer tokens of all requests per second; the same prompts, lengths "
    "and order for both servers, which take turns, no cached prefixes shared between measurements"
)
"""Written beside every speed of a server."""

_MOST_PARTS, _FEWEST_ROUNDS = 4, 2


@dataclass(frozen=True)
class Speed:
    """Answers of one server at one concurrency.

    Attributes:
        answers: in the order of the questions.
        seconds: wall clock of all.
        counters: what they moved; None for a server that does not draft.
    """

    answers: tuple[Streamed, ...]
    seconds: float
    counters: DraftCounters | None = None

    @classmethod
    def joined(cls, parts: Sequence[Speed]) -> Speed:
        """Return several measurements of one server as one."""
        counters = [part.counters for part in parts if part.counters is not None]
        return cls(
            tuple(answer for part in parts for answer in part.answers),
            sum(part.seconds for part in parts),
            DraftCounters.total(counters) if counters else None,
        )

    @property
    def tokens(self) -> int:
        """Answer tokens."""
        return sum(len(answer.token_ids) for answer in self.answers)

    @property
    def tokens_per_second(self) -> float:
        """Throughput."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def first_token(self) -> list[float]:
        """Seconds to the first token of each answer."""
        return [answer.first_seconds for answer in self.answers]

    @property
    def inter_token(self) -> list[float]:
        """Seconds between tokens of each answer that has more than one."""
        return [
            (answer.last_seconds - answer.first_seconds) / (len(answer.token_ids) - 1)
            for answer in self.answers
            if len(answer.token_ids) > 1
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return every number, ready for JSON."""
        drafting = {} if self.counters is None else {
            "acceptance_length": self.counters.acceptance().length,
            "num_drafts": self.counters.drafts,
        }  # fmt: skip
        return {
            "num_answers": len(self.answers),
            "num_tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "first_token_ms": _spread(self.first_token),
            "inter_token_ms": _spread(self.inter_token),
            **drafting,
        }


@dataclass(frozen=True)
class Level:
    """Both servers with equally many requests at once.

    Attributes:
        concurrency: requests at once.
        speculative: the server that drafts.
        plain: the same verifier without drafting; None when there is no such server.
    """

    concurrency: int
    speculative: Speed
    plain: Speed | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return every number, ready for JSON."""
        found: dict[str, Any] = {
            "concurrency": self.concurrency,
            "speculative": self.speculative.to_dict(),
        }
        if self.plain is not None:
            fast, slow = self.speculative, self.plain
            found["plain"] = slow.to_dict()
            found["speedup"] = fast.tokens_per_second / max(slow.tokens_per_second, 1e-9)
            if fast.inter_token and slow.inter_token:
                ratio = np.mean(slow.inter_token) / max(np.mean(fast.inter_token), 1e-12)
                found["inter_token_speedup"] = float(ratio)
        return found


def parts(questions: Sequence[Ask], concurrency: int) -> list[Sequence[Ask]]:
    """Split questions for servers that take turns, so that both meet the same drift of a machine.

    At most four parts, each of at least two rounds: a part ends with fewer requests at once, and
    many short ones would measure that.
    """
    count = max(1, min(_MOST_PARTS, len(questions) // (_FEWEST_ROUNDS * concurrency)))
    ends = [len(questions) * number // count for number in range(count + 1)]
    return [questions[begin:end] for begin, end in pairwise(ends)]


async def measure(
    client: VllmClient,
    url: str,
    model: str,
    questions: Sequence[Ask],
    *,
    concurrency: int,
    salt: str,
) -> Speed:
    """Ask all questions, `concurrency` at a time.

    Args:
        client: speaks HTTP.
        url: base URL of the server.
        model: name of the model there.
        questions: what is asked, in order.
        concurrency: requests at once.
        salt: measurements of different salts share no cached prefix.

    Raises:
        AttemptError: a request failed.
    """
    answers: list[Streamed | None] = [None] * len(questions)
    waiting = iter(enumerate(questions))

    async def work() -> None:
        for number, question in waiting:
            salted = replace(question, cache_salt=f"{salt}-{number}")
            answers[number] = await client.stream(url, model, salted)

    failed: Sequence[BaseException] = ()
    began = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(concurrency, len(questions))):
                tasks.create_task(work())
    except* AttemptError as group:
        failed = group.exceptions
    if failed:
        raise failed[0]  # the others are of the same server
    seconds = time.perf_counter() - began
    return Speed(tuple(answer for answer in answers if answer is not None), seconds)


def _spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """Return mean, median and 95th percentile in milliseconds."""
    if not seconds:
        return None
    values = np.asarray(seconds) * 1e3
    return {
        "mean": float(values.mean()),
        "p50": float(np.percentile(values, 50)),
        "p95": float(np.percentile(values, 95)),
    }

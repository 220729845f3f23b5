"""One question with its answer, and the rule that keeps some questions out of training."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

HELD_OUT_SHARE = 0.1
"""Share of all slot combinations that no training conversation ever contains."""


@dataclass(frozen=True)
class FollowUp:
    """A second question about the first answer.

    Attributes:
        question: what the user asks next.
        answer: the assistant's reply.
        check: strings a right reply contains (case ignored); empty where many are right.
    """

    question: str
    answer: str
    check: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """A question and one good answer.

    Attributes:
        key: what fills the slots of the question, opened by the name of the task. Equal questions
            have equal keys, so that the split by key is a split of the questions.
        question: what the user asks.
        answer: the assistant's reply.
        check: strings a right reply contains (case ignored); empty where many are right.
        follow_up: a question that may come next; its answer follows from this one's question.
    """

    key: tuple[str | int, ...]
    question: str
    answer: str
    check: tuple[str, ...] = ()
    follow_up: FollowUp | None = None

    @property
    def task(self) -> str:
        """Name of the task, the first part of the key."""
        return str(self.key[0])


Task = Callable[[random.Random], Exchange]
"""Draws the slots of one kind of question and writes its answer."""


def is_held_out(key: tuple[str | int, ...]) -> bool:
    """Tell on which side of the split a slot combination stands.

    Args:
        key: of an `Exchange`.

    Returns:
        True for `HELD_OUT_SHARE` of all keys, chosen by sha256 and so the same everywhere.
    """
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def draw(task: Task, rng: random.Random, *, held_out: bool) -> Exchange:
    """Draw from `task` until the slots fall on the wanted side of the split."""
    while True:
        exchange = task(rng)
        if is_held_out(exchange.key) == held_out:
            return exchange

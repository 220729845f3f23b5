"""Conversations out of exchanges: which tasks, how many turns, which system turn."""

from __future__ import annotations

import random
from dataclasses import dataclass

from speculators.data.tiny import (
    arithmetic,
    coding,
    lists,
    manners,
    practical,
    reading,
    stories,
    town,
)
from speculators.data.tiny.exchange import Exchange, FollowUp, Task, draw
from speculators.data.tiny.words import PEOPLE
from speculators.data.types import Conversation, Turn

SOURCE = "tiny"
_MODULES = (stories, arithmetic, lists, town, practical, reading, coding, manners)
TASKS: tuple[Task, ...] = tuple(task for module in _MODULES for task, _ in module.TASKS)
_WEIGHTS = tuple(weight for module in _MODULES for _, weight in module.TASKS)

_PLAIN_SYSTEM = (
    "You are a helpful assistant.",
    "You are a friendly assistant for the people of Tarnwick.",
    "You are a small model that answers in simple English.",
    "Answer the user's questions truthfully.",
)


@dataclass(frozen=True)
class Manner:
    """What a system turn asks for, and what it puts around every answer."""

    system: str
    before: str = ""
    after: str = ""

    def apply(self, answer: str) -> str:
        """Return the answer as this system turn wants it."""
        return self.before + answer + self.after


def _manner(rng: random.Random) -> Manner:
    """Draw a system turn; most conversations have none."""
    name = rng.choice(PEOPLE).name
    return rng.choice(
        [
            *(Manner(system) for system in _PLAIN_SYSTEM),
            Manner(
                f"The user is called {name}. Use the name in your answer.",
                before=f"Gladly, {name}! ",
            ),
            Manner(
                "Be polite and end every answer with a good wish.",
                after=" I wish you a lovely day!",
            ),
            Manner(
                f"You are {name}, a cheerful robot. Sign your answers.",
                after=f"\nYours, {name} the robot",
            ),
        ]
    )


@dataclass(frozen=True)
class Dialogue:
    """Exchanges in order, before they become turns.

    Attributes:
        manner: the system turn, or None.
        exchanges: one per question; a follow-up stands behind the exchange it belongs to.
    """

    manner: Manner | None
    exchanges: tuple[Exchange | FollowUp, ...]

    def turns(self) -> tuple[Turn, ...]:
        """Return every turn, answers included."""
        turns = [Turn("system", self.manner.system)] if self.manner else []
        for exchange in self.exchanges:
            answer = self.manner.apply(exchange.answer) if self.manner else exchange.answer
            turns += [Turn("user", exchange.question), Turn("assistant", answer)]
        return tuple(turns)


def dialogue(rng: random.Random, *, held_out: bool) -> Dialogue:
    """Draw one dialogue of one to five questions from one side of the split."""
    manner = _manner(rng) if rng.random() < 0.2 else None
    count = rng.choices([1, 2, 3, 5], [70, 22, 6, 2])[0]
    exchanges: list[Exchange | FollowUp] = []
    for task in rng.choices(TASKS, _WEIGHTS, k=count):
        exchange = draw(task, rng, held_out=held_out)
        exchanges.append(exchange)
        if exchange.follow_up is not None and rng.random() < 0.35:
            exchanges.append(exchange.follow_up)
    return Dialogue(manner, tuple(exchanges))


def _generator(seed: int, index: int) -> random.Random:
    """Return the generator of one conversation: independent of how many are drawn."""
    return random.Random(f"tiny conversations/{seed}/{index}")


def tiny_conversations(count: int, seed: int = 0) -> list[Conversation]:
    """Generate conversations of the tiny world.

    The first n of a larger request are the n of a smaller one.

    Args:
        count: how many.
        seed: of the draws; another seed gives other conversations of the same world.

    Returns:
        Conversations that contain no held-out question (`is_held_out`).
    """
    drawn = (dialogue(_generator(seed, i), held_out=False) for i in range(count))
    return [Conversation(d.turns(), f"tiny-{seed}-{i}", SOURCE) for i, d in enumerate(drawn)]


@dataclass(frozen=True)
class TinyPrompt:
    """Questions that no training conversation contains, with the means to judge the answers.

    Attributes:
        prompt_id: unique among the prompts of one seed.
        task: name of the first question's task.
        turns: the system turn if there is one, then user turns alone: the answers between them
            are the verifier's.
        answers: one good answer per user turn.
        checks: per user turn, strings that a right answer contains (case ignored).
    """

    prompt_id: str
    task: str
    turns: tuple[Turn, ...]
    answers: tuple[str, ...]
    checks: tuple[tuple[str, ...], ...]

    def is_right(self, index: int, answer: str) -> bool:
        """Tell whether `answer` to user turn `index` contains all that it must."""
        return all(part.lower() in answer.lower() for part in self.checks[index])


def tiny_prompts(count: int, seed: int = 1) -> list[TinyPrompt]:
    """Generate prompts of the tiny world that were held out of every training conversation.

    Args:
        count: how many.
        seed: of the draws.

    Returns:
        Prompts whose every question is held out (`is_held_out`), follow-ups apart: these are
        about the question before them.
    """
    prompts = []
    for index in range(count):
        drawn = dialogue(_generator(seed, index), held_out=True)
        turns = drawn.turns()
        first = drawn.exchanges[0]
        assert isinstance(first, Exchange)
        prompts.append(
            TinyPrompt(
                prompt_id=f"tiny-prompt-{seed}-{index}",
                task=first.task,
                turns=tuple(turn for turn in turns if turn.role != "assistant"),
                answers=tuple(turn.content for turn in turns if turn.role == "assistant"),
                checks=tuple(exchange.check for exchange in drawn.exchanges),
            )
        )
    return prompts

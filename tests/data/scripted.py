"""An answerer that says what a test wants, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from speculators.data.dialogue import STOP, Answer, Dialogue, Question


class Scripted:
    """Carries on one dialogue after another.

    Args:
        say: tokens of the answer to a question.
        finish_reason: of every answer.
    """

    def __init__(self, say: Callable[[Question], Sequence[int]], finish_reason: str = STOP) -> None:
        self._say, self._reason = say, finish_reason
        self.asked: list[Question] = []

    def carry_on(self, dialogues: Iterable[Dialogue]) -> Iterator[Dialogue]:
        for dialogue in dialogues:
            dialogue.begin()
            while dialogue.question is not None:
                dialogue.take(self.answer(dialogue.question))
            yield dialogue

    def answer(self, question: Question) -> Answer:
        self.asked.append(question)
        return Answer(list(self._say(question)), self._reason, "script")

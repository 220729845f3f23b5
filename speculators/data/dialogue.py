"""One conversation while the verifier writes its answers anew (data specification, section 8).

Prompts are token ids and answers come back as token ids; nothing is tokenised twice, and the loss
mask is the border between the two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from speculators.config.schema import MultiTurn, RegenerateConfig, Unfinished
from speculators.data.chat_template import TemplateRefusalError
from speculators.data.masking import Masked, MaskedRow
from speculators.data.rows import TokenRow
from speculators.data.spans import fewest_rows
from speculators.data.template import VerifierTokenizer
from speculators.data.types import Conversation, Turn

STOP, LENGTH = "stop", "length"
"""Why an answer ended: by the verifier itself, or at the longest length allowed."""


@dataclass(frozen=True)
class Question:
    """A prompt the verifier is to answer.

    Attributes:
        prompt: its tokens.
        conversation_id: which conversation.
        turn: which of its answers, from 0.
        max_new_tokens: longest answer.
        temperature: 0 is greedy.
        seed: of the draws; a function of the conversation, the turn and the global seed.
    """

    prompt: list[int]
    conversation_id: str
    turn: int
    max_new_tokens: int
    temperature: float
    seed: int

    @property
    def key(self) -> str:
        """Content address: of the prompt, and of whose it is."""
        digest = hashlib.sha256(np.array(self.prompt, dtype="<i8").tobytes())
        digest.update(f"/{self.conversation_id}/{self.turn}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Answer:
    """What the verifier said.

    Attributes:
        token_ids: its tokens, the end-of-turn token included where it stopped by itself.
        finish_reason: `stop` or `length`.
        engine: who computed it.
    """

    token_ids: list[int]
    finish_reason: str
    engine: str


@runtime_checkable
class Memory(Protocol):
    """Answers of earlier starts."""

    def find(self, question: Question) -> Answer | None:
        """Return the answer to a question, if it was given."""
        ...

    def add(self, question: Question, answer: Answer, text: str) -> None:
        """Keep an answer; it survives the end of this process."""
        ...


@dataclass(frozen=True)
class Rules:
    """What is the same for all conversations of one preparation.

    Attributes:
        tokenizer: the verifier's.
        settings: length, temperature, what becomes of unfinished answers.
        sequence_length: prompts that leave no room in it are not sent.
        multi_turn: how the turns of a conversation become rows.
        seed: global seed.
        memory: answers of earlier starts.
        watch: told the tokens just generated, and whether a conversation has ended with them.
    """

    tokenizer: VerifierTokenizer
    settings: RegenerateConfig
    sequence_length: int
    multi_turn: MultiTurn
    seed: int
    memory: Memory
    watch: Callable[[int, bool], None] = field(default=lambda tokens, over: None)


class Dialogue:
    """Asks one question after another; the answers so far are part of the next one.

    A conversation ends early where a tool result follows (it belongs to a call that the verifier
    may not make), where an answer is empty or has no end, and where the sequence is full.

    Args:
        item: the conversation; of a pre-tokenised row only the first answer is written.
        rules: what is the same for all.

    Attributes:
        question: what is to be asked next; None before `begin` and when it is over.
        answers: so far.
        num_remembered: how many of them earlier starts gave.
        refusal: why it could not go on, or None.
        failure: what a server said instead of an answer, or empty.
    """

    def __init__(self, item: Conversation | TokenRow, rules: Rules) -> None:
        self.question: Question | None = None
        self.answers: list[Answer] = []
        self.num_remembered = 0
        self.refusal: str | None = None
        self.failure = ""
        self._item, self._rules = item, rules
        self._name = _name(item)
        self._cursor = 0
        self._history: list[Turn] = []
        self._rows: list[tuple[np.ndarray, int]] = []

    @property
    def name(self) -> str:
        """Conversation and turn, for messages."""
        return f"{self._name}/{len(self.answers)}"

    def begin(self) -> None:
        """Go to the first question that nobody has answered."""
        self._advance()
        self._watch(0)

    def take(self, answer: Answer) -> None:
        """Keep the answer to `question`, and go to the next one."""
        assert self.question is not None
        text = self._text(answer)
        self._rules.memory.add(self.question, answer, text)
        if self._keep(self.question, answer, text):
            self._advance()
        else:
            self._end()
        self._watch(len(answer.token_ids))

    def refuse(self, detail: str) -> None:
        """Give up: the question cannot be answered.

        Args:
            detail: what the server said.
        """
        self.refusal, self.failure = "not answered", detail
        self._end()
        self._watch(0)

    def masked(self) -> Masked:
        """Return the rows of the answers, or why there are none."""
        if not self._rows:
            refusal = self.refusal or "nothing to answer"
            return Masked(refusal=refusal, detail=self.failure)
        wholes = [ids.tolist() for ids, _ in self._rows]
        groups = [[turn] for turn in range(len(wholes))]
        if self._rules.multi_turn is MultiTurn.auto:
            groups = fewest_rows(wholes, wholes)
        elif self._rules.multi_turn is MultiTurn.last:
            groups = groups[-1:]
        rows = tuple(self._row(group) for group in groups)
        return Masked(rows, refusal="not answered" if self.failure else None, detail=self.failure)

    def _advance(self) -> None:
        """Find the next question; answers that are remembered are taken on the way."""
        while True:
            question = self._next_question()
            if question is None:
                break
            known = self._rules.memory.find(question)
            if known is None:
                self.question = question
                return
            self.num_remembered += 1
            if not self._keep(question, known, self._text(known)):
                break
        self._end()

    def _end(self) -> None:
        self.question = None
        self._history.clear()

    def _watch(self, num_tokens: int) -> None:
        self._rules.watch(num_tokens, self.question is None)

    def _next_question(self) -> Question | None:
        prompt = self._next_prompt()
        if prompt is None:
            return None
        room = self._rules.sequence_length - len(prompt)
        if room < 1 or not prompt:
            if not self.answers:
                why = "the prompt fills the sequence" if prompt else "the prompt is empty"
                self.refusal = why
            return None
        settings, turn = self._rules.settings, len(self.answers)
        text = f"{self._rules.seed}/regenerate/{self._name}/{turn}"
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return Question(
            prompt,
            self._name,
            turn,
            min(settings.max_new_tokens, room),
            settings.temperature,
            int.from_bytes(digest[:8], "little") >> 1,
        )

    def _next_prompt(self) -> list[int] | None:
        item = self._item
        if isinstance(item, TokenRow):
            return None if self.answers else item.input_ids[: int(item.loss_mask.argmax())].tolist()
        while self._cursor < len(item.turns):
            turn = item.turns[self._cursor]
            self._cursor += 1
            if turn.role == "tool" and self.answers:
                return None
            if turn.role != "assistant":
                self._history.append(turn)
                continue
            try:
                return self._rules.tokenizer.prompt_ids(self._history, item.tools)
            except TemplateRefusalError as refusal:
                self.refusal = str(refusal)
                return None
        return None

    def _keep(self, question: Question, answer: Answer, text: str) -> bool:
        """Keep an answer; return whether the conversation goes on."""
        if not answer.token_ids:
            self.refusal = "the verifier's answer is empty"
            return False
        ended = answer.finish_reason == STOP
        if not ended and self._rules.settings.unfinished is Unfinished.drop:
            self.refusal = "the answer has no end"
            return False
        self.answers.append(answer)
        whole = np.array([*question.prompt, *answer.token_ids], dtype=np.int64)
        self._rows.append((whole, len(question.prompt)))
        self._history.append(Turn("assistant", text))
        return ended and bool(text.strip())

    def _text(self, answer: Answer) -> str:
        """Return an answer as it stands in a history, without its end-of-turn token."""
        tokenizer, ids = self._rules.tokenizer, answer.token_ids
        ended = bool(ids) and ids[-1] in tokenizer.end_of_turn_ids
        return tokenizer.decode(ids[:-1] if ended else ids, special=False)

    def _row(self, group: list[int]) -> MaskedRow:
        ids = self._rows[group[-1]][0]
        mask = np.zeros(len(ids), dtype=bool)
        for turn in group:
            whole, start = self._rows[turn]
            mask[start : len(whole)] = True
        ends = self._rules.tokenizer.end_of_turn_ids
        num_open = sum(int(self._rows[turn][0][-1]) not in ends for turn in group)
        answered = int(mask.sum())
        roles = {"prompt": (len(ids) - answered, 0), "assistant": (answered, answered)}
        return MaskedRow(ids, mask, roles, num_open, len(group))


@runtime_checkable
class Answerer(Protocol):
    """A verifier that answers: in this process, or a server."""

    def carry_on(self, dialogues: Iterable[Dialogue]) -> Iterator[Dialogue]:
        """Take every dialogue to its end, and yield them in the order given.

        Raises:
            SpeculatorsError: the verifier cannot be had, or fails too often.
        """
        ...


def _name(item: Conversation | TokenRow) -> str:
    if item.conversation_id is not None:
        return item.conversation_id
    assert isinstance(item, TokenRow)
    return hashlib.sha256(item.input_ids.astype("<i8").tobytes()).hexdigest()[:32]

"""On-policy answers: the verifier writes every assistant turn anew, and its tokens are kept.

A drafter serves one verifier, so it should learn from what that verifier says (data specification,
section 8). Prompts are token ids and answers come back as token ids; nothing is tokenised twice,
and the loss mask is the border between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from speculators.config.schema import MultiTurn
from speculators.data.chat_template import TemplateRefusalError
from speculators.data.masking import Masked, MaskedRow
from speculators.data.rows import TokenRow
from speculators.data.spans import fewest_rows
from speculators.data.template import VerifierTokenizer
from speculators.data.types import Conversation, Turn
from speculators.errors import DataError

Regenerate: TypeAlias = Callable[[list[list[int]]], list[list[int]]]
"""Prompts -> the verifier's answers, end token included where it stopped by itself."""


@dataclass
class _Dialogue:
    """A conversation while it is written anew.

    Attributes:
        item: where the questions come from.
        cursor: next turn to read.
        history: turns so far, with the verifier's answers.
        answers: per answer the tokens up to its end, and where it begins.
        refusal: why it could not go on, if there is no answer.
    """

    item: Conversation | TokenRow
    cursor: int = 0
    history: list[Turn] = field(default_factory=list)
    answers: list[tuple[list[int], int]] = field(default_factory=list)
    refusal: str | None = None


def regenerate_rows(
    items: Sequence[Conversation | TokenRow],
    tokenizer: VerifierTokenizer,
    regenerate: Regenerate,
    *,
    sequence_length: int,
    multi_turn: MultiTurn = MultiTurn.auto,
) -> list[Masked]:
    """Replace the answers of conversations by the verifier's own.

    All conversations advance turn by turn together, one call of `regenerate` per turn. A
    conversation ends early where a tool result follows (it belongs to a call that the verifier
    may not make), where an answer is empty or has no end, and where the sequence is full.

    Args:
        items: conversations; of a pre-tokenised row only the first answer is written.
        tokenizer: the verifier's.
        regenerate: the verifier.
        sequence_length: prompts that leave no room in it are not sent.
        multi_turn: how the turns of a conversation become rows.

    Raises:
        DataError: the verifier did not answer every prompt.
    """
    dialogues = [_Dialogue(item) for item in items]
    active = dialogues
    while active:
        asked = [(dialogue, _next_prompt(dialogue, tokenizer)) for dialogue in active]
        ready = [
            (dialogue, prompt)
            for dialogue, prompt in asked
            if prompt is not None and _fits(dialogue, prompt, sequence_length)
        ]
        if not ready:
            break
        answers = regenerate([prompt for _, prompt in ready])
        if len(answers) != len(ready):
            raise DataError(
                f"data.regenerate: {len(ready)} prompts were sent, {len(answers)} answers came back"
            )
        active = [
            dialogue
            for (dialogue, prompt), answer in zip(ready, answers, strict=True)
            if _take(dialogue, prompt, list(answer), tokenizer)
        ]
    return [_rows(dialogue, tokenizer, multi_turn) for dialogue in dialogues]


def _next_prompt(dialogue: _Dialogue, tokenizer: VerifierTokenizer) -> list[int] | None:
    """Return the tokens of the next prompt; None where the conversation is over."""
    item = dialogue.item
    if isinstance(item, TokenRow):
        return None if dialogue.answers else item.input_ids[: int(item.loss_mask.argmax())].tolist()
    while dialogue.cursor < len(item.turns):
        turn = item.turns[dialogue.cursor]
        dialogue.cursor += 1
        if turn.role == "tool" and dialogue.answers:
            return None
        if turn.role != "assistant":
            dialogue.history.append(turn)
            continue
        try:
            return tokenizer.prompt_ids(dialogue.history, item.tools)
        except TemplateRefusalError as refusal:
            dialogue.refusal = str(refusal)
            return None
    return None


def _fits(dialogue: _Dialogue, prompt: list[int], sequence_length: int) -> bool:
    fits = 0 < len(prompt) < sequence_length
    if not fits and not dialogue.answers:
        dialogue.refusal = "the prompt fills the sequence" if prompt else "the prompt is empty"
    return fits


def _take(
    dialogue: _Dialogue, prompt: list[int], answer: list[int], tokenizer: VerifierTokenizer
) -> bool:
    """Keep an answer; return whether the conversation goes on."""
    if not answer:
        dialogue.refusal = dialogue.refusal or "the verifier's answer is empty"
        return False
    dialogue.answers.append((prompt + answer, len(prompt)))
    ended = answer[-1] in tokenizer.end_of_turn_ids
    text = tokenizer.decode(answer[:-1] if ended else answer, special=False)
    dialogue.history.append(Turn("assistant", text))
    return ended and bool(text.strip())


def _rows(dialogue: _Dialogue, tokenizer: VerifierTokenizer, multi_turn: MultiTurn) -> Masked:
    if not dialogue.answers:
        return Masked(refusal=dialogue.refusal or "nothing to answer")
    wholes = [ids for ids, _ in dialogue.answers]
    groups = [[turn] for turn in range(len(wholes))]
    if multi_turn is MultiTurn.auto:
        groups = fewest_rows(wholes, wholes)
    elif multi_turn is MultiTurn.last:
        groups = groups[-1:]
    rows = []
    for group in groups:
        ids = np.array(wholes[group[-1]], dtype=np.int64)
        mask = np.zeros(len(ids), dtype=bool)
        for turn in group:
            whole, start = dialogue.answers[turn]
            mask[start : len(whole)] = True
        num_open = sum(wholes[turn][-1] not in tokenizer.end_of_turn_ids for turn in group)
        answered = int(mask.sum())
        roles = {"prompt": (len(ids) - answered, 0), "assistant": (answered, answered)}
        rows.append(MaskedRow(ids, mask, roles, num_open))
    return Masked(tuple(rows))

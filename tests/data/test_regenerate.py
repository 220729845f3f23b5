from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from speculators.config.schema import MultiTurn
from speculators.data.regenerate import regenerate_rows
from speculators.data.rows import TokenRow
from speculators.data.template import VerifierTokenizer
from speculators.data.types import Conversation, Turn
from speculators.errors import DataError

MakeTokenizer = Callable[..., VerifierTokenizer]
Chat = Callable[..., Conversation]


class Verifier:
    """Answers with given texts, one per call, and remembers what it was asked."""

    def __init__(self, tokenizer: VerifierTokenizer, end: str, *texts: str) -> None:
        self._tokenizer, self._end, self._texts = tokenizer, end, list(texts)
        self.prompts: list[list[str]] = []

    def __call__(self, prompts: list[list[int]]) -> list[list[int]]:
        self.prompts.append([self._tokenizer.decode(prompt) for prompt in prompts])
        text = self._texts.pop(0)
        return [self._tokenizer.tail_ids(text + self._end).tolist() for _ in prompts]


def test_answers_are_the_verifier_s_tokens_and_history_is_its_own(
    make_tokenizer: MakeTokenizer, chat: Chat
) -> None:
    tokenizer = make_tokenizer("chatml")
    verifier = Verifier(tokenizer, "<|im_end|>", "One!", "Two!")
    conversations = [chat("a", "x", "b", "y", name="1"), chat("c", "z", name="2")]
    result = regenerate_rows(conversations, tokenizer, verifier, sequence_length=100)
    header = "<|im_start|>assistant\n"
    assert verifier.prompts == [
        [f"<|im_start|>user\n{q}<|im_end|>\n{header}" for q in "ac"],
        [
            f"<|im_start|>user\na<|im_end|>\n{header}One!<|im_end|>\n"
            f"<|im_start|>user\nb<|im_end|>\n{header}"
        ],
    ]
    texts = [tokenizer.decode(row.input_ids[row.loss_mask]) for m in result for row in m.rows]
    assert texts == ["One!<|im_end|>Two!<|im_end|>", "One!<|im_end|>"]


def test_rewritten_history_gives_a_row_per_answer(
    make_tokenizer: MakeTokenizer, chat: Chat
) -> None:
    tokenizer = make_tokenizer(None)
    verifier = Verifier(tokenizer, "<|end_of_text|>", " one.", " two.")
    result = regenerate_rows([chat("a", "x", "b", "y")], tokenizer, verifier, sequence_length=100)[
        0
    ]
    texts = [tokenizer.decode(row.input_ids) for row in result.rows]
    assert texts == ["a one.<|end_of_text|>", "a one. b two.<|end_of_text|>"]
    assert [tokenizer.decode(row.input_ids[row.loss_mask]) for row in result.rows] == [
        " one.<|end_of_text|>",
        " two.<|end_of_text|>",
    ]


@pytest.mark.parametrize(
    ("policy", "expected"), [(MultiTurn.per_turn, ["One!", "Two!"]), (MultiTurn.last, ["Two!"])]
)
def test_policies(
    policy: MultiTurn, expected: list[str], make_tokenizer: MakeTokenizer, chat: Chat
) -> None:
    tokenizer = make_tokenizer("chatml")
    verifier = Verifier(tokenizer, "<|im_end|>", "One!", "Two!")
    result = regenerate_rows(
        [chat("a", "x", "b", "y")], tokenizer, verifier, sequence_length=100, multi_turn=policy
    )[0]
    texts = [tokenizer.decode(row.input_ids[row.loss_mask], special=False) for row in result.rows]
    assert texts == expected


def test_answer_that_was_cut_off_ends_the_conversation(
    make_tokenizer: MakeTokenizer, chat: Chat
) -> None:
    tokenizer = make_tokenizer("chatml")
    verifier = Verifier(tokenizer, "", "and so on")
    result = regenerate_rows([chat("a", "x", "b", "y")], tokenizer, verifier, sequence_length=100)[
        0
    ]
    assert len(result.rows) == 1
    assert result.rows[0].num_open_turns == 1
    assert len(verifier.prompts) == 1


def test_tool_results_end_the_conversation(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("qwen3", enable_thinking=False)
    turns = (
        Turn("user", "q"),
        Turn("assistant", "call"),
        Turn("tool", "r"),
        Turn("assistant", "a"),
    )
    verifier = Verifier(tokenizer, "<|im_end|>", "Fine.")
    result = regenerate_rows(
        [Conversation(turns, "c", "s")], tokenizer, verifier, sequence_length=100
    )[0]
    assert len(verifier.prompts) == 1
    assert tokenizer.decode(result.rows[0].input_ids[result.rows[0].loss_mask]) == (
        "Fine.<|im_end|>"
    )


def test_prompts_without_room_are_not_sent(make_tokenizer: MakeTokenizer, chat: Chat) -> None:
    tokenizer = make_tokenizer("chatml")
    verifier = Verifier(tokenizer, "<|im_end|>", "Fine.")
    conversations = [chat("word " * 50, "x"), chat("a", "x")]
    long, short = regenerate_rows(conversations, tokenizer, verifier, sequence_length=30)
    assert long.refusal == "the prompt fills the sequence"
    assert len(short.rows) == 1
    assert [len(prompts) for prompts in verifier.prompts] == [1]


def test_refusal_and_empty_answer(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("strict")
    twice = Conversation((Turn("user", "a"), Turn("user", "b"), Turn("assistant", "c")), "c", "s")
    once = Conversation((Turn("user", "a"), Turn("assistant", "c")), "d", "s")
    refused, empty = regenerate_rows(
        [twice, once], tokenizer, lambda prompts: [[] for _ in prompts], sequence_length=30
    )
    assert refused.refusal == "chat template: roles must alternate"
    assert empty.refusal == "the verifier's answer is empty"


def test_tokenised_rows_keep_their_prompt(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    row = TokenRow(np.array([5, 6, 7, 8]), np.array([False, False, True, True]), None, "s")
    end = next(iter(tokenizer.end_of_turn_ids))
    result = regenerate_rows([row], tokenizer, lambda _: [[40, 41, end]], sequence_length=30)[0]
    assert result.rows[0].input_ids.tolist() == [5, 6, 40, 41, end]
    assert result.rows[0].loss_mask.tolist() == [False, False, True, True, True]


def test_missing_answers_are_an_error(make_tokenizer: MakeTokenizer, chat: Chat) -> None:
    with pytest.raises(DataError, match="1 prompts were sent, 0 answers came back"):
        regenerate_rows(
            [chat("a", "x")], make_tokenizer("chatml"), lambda _: [], sequence_length=30
        )

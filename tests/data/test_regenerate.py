from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.scripted import Scripted
from speculators.config.schema import MultiTurn, RegenerateConfig, Unfinished
from speculators.data.dialogue import LENGTH, STOP, Dialogue, Question, Rules
from speculators.data.ledger import AnswerLedger
from speculators.data.masking import Masked
from speculators.data.regenerate import regenerate_rows
from speculators.data.report import DataReport
from speculators.data.rows import Origin, Record, TokenRow
from speculators.data.template import VerifierTokenizer
from speculators.data.types import Conversation, Turn

MakeTokenizer = Callable[..., VerifierTokenizer]
Chat = Callable[..., Conversation]
Rewrite = Callable[..., list[Masked]]


@pytest.fixture
def rewrite(tmp_path: Path) -> Rewrite:
    """Rewrite conversations with given answers, one text per turn."""

    def go(
        items: Sequence[Conversation | TokenRow],
        tokenizer: VerifierTokenizer,
        answerer: Scripted,
        **given: Any,
    ) -> list[Masked]:
        ledger = AnswerLedger(tmp_path / "answers", {})
        rules = Rules(
            tokenizer,
            given.get("settings", RegenerateConfig(enabled=True)),
            given.get("sequence_length", 100),
            given.get("multi_turn", MultiTurn.auto),
            given.get("seed", 0),
            ledger,
        )
        records = [Record(item, Origin("f", i + 1)) for i, item in enumerate(items)]
        report = given.get("report", DataReport())
        try:
            return [m for _, m in regenerate_rows(records, answerer, rules, report)]
        finally:
            ledger.close()

    return go


def script(
    tokenizer: VerifierTokenizer, end: str, *texts: str, finish_reason: str = STOP
) -> Scripted:
    """Answer turn by turn with given texts."""

    def say(question: Question) -> list[int]:
        return tokenizer.tail_ids(texts[question.turn] + end).tolist()

    return Scripted(say, finish_reason)


def supervised(tokenizer: VerifierTokenizer, masked: Masked, **how: bool) -> list[str]:
    return [tokenizer.decode(row.input_ids[row.loss_mask], **how) for row in masked.rows]


def test_answers_are_the_verifier_s_tokens_and_history_is_its_own(
    make_tokenizer: MakeTokenizer, chat: Chat, rewrite: Rewrite
) -> None:
    tokenizer = make_tokenizer("chatml")
    verifier = script(tokenizer, "<|im_end|>", "One!", "Two!")
    conversations = [chat("a", "x", "b", "y", name="1"), chat("c", "z", name="2")]
    report = DataReport()
    result = rewrite(conversations, tokenizer, verifier, report=report)
    header = "<|im_start|>assistant\n"
    assert [tokenizer.decode(question.prompt) for question in verifier.asked] == [
        f"<|im_start|>user\na<|im_end|>\n{header}",
        f"<|im_start|>user\na<|im_end|>\n{header}One!<|im_end|>\n"
        f"<|im_start|>user\nb<|im_end|>\n{header}",
        f"<|im_start|>user\nc<|im_end|>\n{header}",
    ]
    texts = [text for masked in result for text in supervised(tokenizer, masked)]
    assert texts == ["One!<|im_end|>Two!<|im_end|>", "One!<|im_end|>"]
    assert report.finish_reasons == {"stop": 3}


def test_rewritten_history_gives_a_row_per_answer(
    make_tokenizer: MakeTokenizer, chat: Chat, rewrite: Rewrite
) -> None:
    tokenizer = make_tokenizer(None)
    verifier = script(tokenizer, "<|end_of_text|>", " one.", " two.")
    (result,) = rewrite([chat("a", "x", "b", "y")], tokenizer, verifier)
    texts = [tokenizer.decode(row.input_ids) for row in result.rows]
    assert texts == ["a one.<|end_of_text|>", "a one. b two.<|end_of_text|>"]
    assert supervised(tokenizer, result) == [" one.<|end_of_text|>", " two.<|end_of_text|>"]


@pytest.mark.parametrize(
    ("policy", "expected"), [(MultiTurn.per_turn, ["One!", "Two!"]), (MultiTurn.last, ["Two!"])]
)
def test_policies(
    policy: MultiTurn,
    expected: list[str],
    make_tokenizer: MakeTokenizer,
    chat: Chat,
    rewrite: Rewrite,
) -> None:
    tokenizer = make_tokenizer("chatml")
    verifier = script(tokenizer, "<|im_end|>", "One!", "Two!")
    (result,) = rewrite([chat("a", "x", "b", "y")], tokenizer, verifier, multi_turn=policy)
    assert supervised(tokenizer, result, special=False) == expected


@pytest.mark.parametrize("policy", list(Unfinished))
def test_answer_that_was_cut_off_ends_the_conversation(
    policy: Unfinished, make_tokenizer: MakeTokenizer, chat: Chat, rewrite: Rewrite
) -> None:
    tokenizer = make_tokenizer("chatml")
    verifier = script(tokenizer, "", "and so on", finish_reason=LENGTH)
    settings = RegenerateConfig(enabled=True, unfinished=policy)
    (result,) = rewrite([chat("a", "x", "b", "y")], tokenizer, verifier, settings=settings)
    assert len(verifier.asked) == 1
    if policy is Unfinished.drop:
        assert (result.rows, result.refusal) == ((), "the answer has no end")
    else:
        assert [row.num_open_turns for row in result.rows] == [1]


def test_tool_results_end_the_conversation(make_tokenizer: MakeTokenizer, rewrite: Rewrite) -> None:
    tokenizer = make_tokenizer("qwen3", enable_thinking=False)
    turns = (
        Turn("user", "q"),
        Turn("assistant", "call"),
        Turn("tool", "r"),
        Turn("assistant", "a"),
    )
    verifier = script(tokenizer, "<|im_end|>", "Fine.")
    (result,) = rewrite([Conversation(turns, "c", "s")], tokenizer, verifier)
    assert len(verifier.asked) == 1
    assert supervised(tokenizer, result) == ["Fine.<|im_end|>"]


def test_prompts_without_room_are_not_sent(
    make_tokenizer: MakeTokenizer, chat: Chat, rewrite: Rewrite
) -> None:
    tokenizer = make_tokenizer("chatml")
    verifier = script(tokenizer, "<|im_end|>", "Fine.")
    conversations = [chat("word " * 50, "x"), chat("a", "x")]
    long, short = rewrite(conversations, tokenizer, verifier, sequence_length=30)
    assert long.refusal == "the prompt fills the sequence"
    assert len(short.rows) == 1
    (question,) = verifier.asked
    assert question.max_new_tokens == 30 - len(question.prompt)


def test_refusals_keep_the_reason_and_the_turns_before(
    make_tokenizer: MakeTokenizer, chat: Chat, rewrite: Rewrite
) -> None:
    tokenizer = make_tokenizer("strict")
    twice = Conversation((Turn("user", "a"), Turn("user", "b"), Turn("assistant", "c")), "c", "s")
    once = Conversation((Turn("user", "a"), Turn("assistant", "c")), "d", "s")
    refused, empty = rewrite([twice, once], tokenizer, Scripted(lambda question: []))
    assert refused.refusal == "chat template: roles must alternate"
    assert empty.refusal == "the verifier's answer is empty"

    class Refusing(Scripted):
        def carry_on(self, dialogues: Any) -> Any:
            for dialogue in dialogues:
                dialogue.begin()
                dialogue.take(script(tokenizer, "<|im_end|>", "One!").answer(dialogue.question))
                dialogue.refuse("HTTP 400: no")
                yield dialogue

    tokenizer = make_tokenizer("chatml")
    (half,) = rewrite([chat("a", "x", "b", "y")], tokenizer, Refusing(lambda question: []))
    assert supervised(tokenizer, half) == ["One!<|im_end|>"]
    assert (half.refusal, half.detail) == ("not answered", "HTTP 400: no")


def test_tokenised_rows_keep_their_prompt(make_tokenizer: MakeTokenizer, rewrite: Rewrite) -> None:
    tokenizer = make_tokenizer("chatml")
    row = TokenRow(np.array([5, 6, 7, 8]), np.array([False, False, True, True]), None, "s")
    end = next(iter(tokenizer.end_of_turn_ids))
    (result,) = rewrite([row], tokenizer, Scripted(lambda question: [40, 41, end]))
    assert result.rows[0].input_ids.tolist() == [5, 6, 40, 41, end]
    assert result.rows[0].loss_mask.tolist() == [False, False, True, True, True]


def test_seeds_belong_to_conversation_turn_and_run(
    make_tokenizer: MakeTokenizer, chat: Chat, rewrite: Rewrite, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer("chatml")

    def seeds(*names: str, seed: int = 0) -> list[int]:
        verifier = script(tokenizer, "<|im_end|>", "One!", "Two!")
        (tmp_path / "answers" / "answers.jsonl").unlink(missing_ok=True)
        rewrite([chat("a", "x", "b", "y", name=n) for n in names], tokenizer, verifier, seed=seed)
        return [question.seed for question in verifier.asked]

    first = seeds("1", "2")
    assert len(set(first)) == 4
    assert seeds("2", "1") == first[2:] + first[:2]
    assert not set(seeds("1", "2", seed=1)) & set(first)


def test_the_end_is_told_once(make_tokenizer: MakeTokenizer, chat: Chat, tmp_path: Path) -> None:
    tokenizer = make_tokenizer("chatml")
    told: list[tuple[int, bool]] = []
    ledger = AnswerLedger(tmp_path, {})
    rules = Rules(
        *(tokenizer, RegenerateConfig(enabled=True), 100, MultiTurn.auto, 0, ledger),
        watch=lambda tokens, over: told.append((tokens, over)),
    )
    verifier = script(tokenizer, "<|im_end|>", "One!", "Two!")
    list(verifier.carry_on([Dialogue(chat("a", "x", "b", "y"), rules)]))
    size = len(tokenizer.tail_ids("One!<|im_end|>"))
    assert told == [(0, False), (size, False), (size, True)]
    ledger.close()

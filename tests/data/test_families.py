"""Masks of every template family: what is supervised is what the assistant said, to the letter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from data.families import FAMILIES, Family
from speculators.data.masking import Masked, Masker
from speculators.data.probe import probe_template
from speculators.data.template import VerifierTokenizer
from speculators.data.types import Conversation, Turn

MakeFamily = Callable[[str], VerifierTokenizer]

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="session")
def make_family(backend: Tokenizer) -> MakeFamily:
    """Build the tokenizer of a family."""
    made: dict[str, VerifierTokenizer] = {}

    def build(family: Family) -> VerifierTokenizer:
        tokenizer = Tokenizer.from_str(backend.to_str())
        names = [*family.tokens, *([family.bos] if family.bos else [])]
        tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=family.bos,
            eos_token=family.eos or "<|end_of_text|>",
        )
        fast.chat_template = family.template
        stops = [tokenizer.get_vocab()[name] for name in family.stops]
        return VerifierTokenizer(fast, family.template, family.arguments, stops)

    def make(name: str) -> VerifierTokenizer:
        if name not in made:
            made[name] = build(FAMILIES[name])
        return made[name]

    return make


def supervised(tokenizer: VerifierTokenizer, masked: Masked) -> list[str]:
    """Decode every supervised run of every row, in order."""
    texts = []
    for row in masked.rows:
        edges = np.flatnonzero(np.diff(np.r_[0, row.loss_mask.astype(int), 0])).reshape(-1, 2)
        texts += [tokenizer.decode(row.input_ids[a:b].tolist()) for a, b in edges]
    return texts


def said(family: Family, turns: Sequence[Turn]) -> list[str]:
    return [family.written(turn) for turn in turns if turn.role == "assistant"]


def conversation(kind: str) -> Conversation:
    """Build a conversation of one kind."""
    user, answer = Turn("user", "How far is it?"), Turn("assistant", "Very far.\n\nReally.")
    more = (Turn("user", "And then?"), Turn("assistant", "  Further on."))
    thought = Turn("assistant", "Very far.", {"reasoning_content": "Let me think.\n\nHm."})
    call = {"name": "weather", "arguments": {"city": "Oslo", "days": 3}}
    calls = {"tool_calls": [{"id": "abcdefghi", "type": "function", "function": call}]}
    tool_turns = (
        Turn("user", "Weather?"),
        Turn("assistant", "", calls),
        Turn("tool", "rain", {"name": "weather", "tool_call_id": "abcdefghi"}),
        Turn("assistant", "It rains."),
    )
    turns = {
        "single": (user, answer),
        "multi": (user, answer, *more, *more),
        "system": (Turn("system", "Be brief."), user, answer, *more),
        "reasoning": (user, thought, Turn("user", "And then?"), thought),
        "tools": (*tool_turns, *more),
    }[kind]
    return Conversation(turns, kind, "test", TOOLS if kind == "tools" else None)


CASES = [
    (name, kind)
    for name, family in FAMILIES.items()
    for kind in ("single", "multi", "system", "reasoning", "tools")
    if kind in ("single", "multi") or kind in family.kinds
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_supervised_text_is_what_the_assistant_said(
    name: str, kind: str, make_family: MakeFamily
) -> None:
    tokenizer, chat = make_family(name), conversation(kind)
    masked = Masker(tokenizer).mask([chat])[0]
    assert supervised(tokenizer, masked) == said(FAMILIES[name], chat.turns)
    assert not masked.unstable
    assert masked.refusal is None
    for row in masked.rows:
        assert row.num_open_turns == 0
        assert all(row.roles.get(role, (0, 0))[1] == 0 for role in ("user", "system", "tool"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_answer_stands_behind_its_own_serving_prompt(
    name: str, make_family: MakeFamily
) -> None:
    """What precedes a supervised run is, token for token, what the server would have sent."""
    tokenizer = make_family(name)
    kinds = {"single", "multi"} | FAMILIES[name].kinds
    for chat in map(conversation, sorted(kinds)):
        prompts = [
            tokenizer.prompt_ids(chat.turns[:turn], chat.tools)
            for turn in range(len(chat.turns))
            if chat.turns[turn].role == "assistant"
        ]
        found = []
        for row in Masker(tokenizer).mask([chat])[0].rows:
            starts = np.flatnonzero(np.diff(np.r_[0, row.loss_mask.astype(int)]) == 1)
            found += [row.input_ids[:start].tolist() for start in starts]
        assert found == prompts


@pytest.mark.parametrize("name", FAMILIES)
def test_probe_accepts_every_family(name: str, make_family: MakeFamily) -> None:
    probe = probe_template(make_family(name))
    named = {"system turn": "system", "tools": "tools", "reasoning": "reasoning"}
    lacking = {named[kind] for kind in probe.refused}
    expected = set(named.values()) - FAMILIES[name].kinds
    assert lacking - {"reasoning"} == expected - {"reasoning"}
    assert ("reasoning" in lacking) == (name not in ("qwen3", "gpt_oss"))


@pytest.mark.parametrize(
    ("name", "roles", "reason"),
    [
        ("gemma3", ("user", "user", "assistant"), "Conversation roles must alternate"),
        ("gemma2", ("system", "user", "assistant"), "System role not supported"),
        ("gemma3", ("user", "assistant", "tool", "assistant"), "Conversation roles must alternate"),
        ("gpt_oss", ("user", "tool", "assistant"), "Message has tool role, but there was no call!"),
    ],
)
def test_conversations_a_template_rejects_are_refused_with_its_reason(
    name: str, roles: Sequence[str], reason: str, make_family: MakeFamily
) -> None:
    turns = tuple(Turn(role, "text") for role in roles)
    masked = Masker(make_family(name)).mask([Conversation(turns, "c", "s")])[0]
    assert masked.rows == ()
    assert masked.refusal is not None
    assert reason in masked.refusal


def test_template_that_merges_system_and_user_supervises_neither(make_family: MakeFamily) -> None:
    tokenizer, chat = make_family("gemma3"), conversation("system")
    row = Masker(tokenizer).mask([chat])[0].rows[-1]
    text = tokenizer.decode(row.input_ids.tolist())
    assert "<start_of_turn>user\nBe brief.\n\nHow far is it?<end_of_turn>" in text
    assert row.roles["system"][1] == row.roles["user"][1] == 0


def test_reasoning_with_thinking_switched_off_is_unstable(make_family: MakeFamily) -> None:
    """The prompt closes the think block, the text opens another: no border can be right."""
    masked = Masker(make_family("qwen3_no_think")).mask([conversation("reasoning")])[0]
    assert len(masked.unstable) == 2
    assert masked.rows == ()


def test_reasoning_that_leaves_the_text_stays_in_the_prompt(make_family: MakeFamily) -> None:
    """gpt-oss: the server shows the call's reasoning, the finished text no longer does."""
    chat = conversation("tools")
    call = Turn("assistant", "", {**chat.turns[1].extra, "reasoning_content": "Hm."})
    turns = (chat.turns[0], call, *chat.turns[2:4])
    tokenizer = make_family("gpt_oss")
    masked = Masker(tokenizer).mask([Conversation(turns, "c", "s", TOOLS)])[0]
    assert supervised(tokenizer, masked) == said(FAMILIES["gpt_oss"], turns)
    assert masked.unstable == ()
    last = masked.rows[-1]
    prompt = tokenizer.prompt_ids(turns[:3], TOOLS)
    assert "Hm." in tokenizer.decode(prompt)
    assert last.input_ids[: len(prompt)].tolist() == prompt
    assert int(np.flatnonzero(last.loss_mask)[-1]) >= len(prompt)
    assert last.loss_mask[len(prompt)]


def test_system_text_that_leaves_the_text_stays_in_the_prompt(make_family: MakeFamily) -> None:
    """Mistral-v0.3: only a question that nothing follows carries the system text."""
    tokenizer, chat = make_family("mistral"), conversation("system")
    finished = tokenizer.decode(tokenizer.render(chat.turns))
    assert "Be brief." not in finished
    masked = Masker(tokenizer).mask([chat])[0]
    texts = [tokenizer.decode(row.input_ids) for row in masked.rows]
    assert texts == [
        "<s>[INST] Be brief.\n\nHow far is it?[/INST] Very far.\n\nReally.</s>",
        "<s>[INST] How far is it?[/INST] Very far.\n\nReally.</s>"
        "[INST] Be brief.\n\nAnd then?[/INST] Further on.</s>",
    ]


def test_empty_thought_of_the_prompt_stays_in_the_row(make_family: MakeFamily) -> None:
    tokenizer = make_family("gemma4")
    masked = Masker(tokenizer).mask([conversation("multi")])[0]
    empty = "<|channel>thought\n<channel|>"
    texts = [tokenizer.decode(row.input_ids) for row in masked.rows]
    assert [text.count(empty) for text in texts] == [1, 1, 1]
    assert texts[1].endswith(f"<|turn>model\n{empty}Further on.<turn|>\n")


@pytest.mark.parametrize("name", ["chatml", "gemma3", "phi3"])
def test_calls_that_a_template_does_not_show_are_not_taught(
    name: str, make_family: MakeFamily
) -> None:
    chat = conversation("tools")
    if name == "gemma3":  # knows no tool turns either
        chat = Conversation(chat.turns[:2], "c", "s", TOOLS)
    masked = Masker(make_family(name)).mask([chat])[0]
    assert masked.hidden == ("turn 2 calls 'weather'",)
    answers = [turn for turn in chat.turns if turn.role == "assistant" and turn.content]
    assert supervised(make_family(name), masked) == said(FAMILIES[name], answers)


@pytest.mark.parametrize(
    ("name", "num_rows"),
    [
        ("chatml", 1),
        ("llama3", 1),
        ("gemma3", 1),
        ("gemma4", 3),
        ("phi3", 1),
        ("phi4", 1),
        ("mistral", 1),
        ("qwen3", 3),
        ("gpt_oss", 3),
        ("qwen3_no_think", 3),
    ],
)
def test_as_few_rows_as_are_exact(name: str, num_rows: int, make_family: MakeFamily) -> None:
    masked = Masker(make_family(name)).mask([conversation("multi")])[0]
    assert len(masked.rows) == num_rows


# ---- random conversations -----------------------------------------------------------------------

words = st.sampled_from(
    ["Hello", "there", "é", "日本", "x = 1\n\ny", "(a)", "ok.", "assistant", "1 2", "\n- z", "!"]
)
contents = st.lists(words, min_size=1, max_size=4).map(" ".join).map(str.strip)
exchange = st.tuples(contents, contents, st.none() | contents, st.booleans())
dialogues = st.tuples(st.none() | contents, st.lists(exchange, min_size=1, max_size=4))


def build(family: Family, system: str | None, exchanges: Sequence[Any]) -> Conversation:
    turns: list[Turn] = []
    if system is not None and "system" in family.kinds:
        turns.append(Turn("system", system))
    tools = False
    for number, (question, answer, reasoning, calls) in enumerate(exchanges):
        extra: dict[str, Any] = {}
        if reasoning is not None and "reasoning" in family.kinds:
            extra["reasoning_content"] = reasoning
        turns.append(Turn("user", question))
        if calls and "tools" in family.kinds:
            tools = True
            function = {"name": "weather", "arguments": {"city": question}}
            call = {"id": f"call{number:05d}", "type": "function", "function": function}
            thought = extra if family.calls_think else {}
            turns.append(Turn("assistant", "", {**thought, "tool_calls": [call]}))
            turns.append(Turn("tool", answer, {"name": "weather", "tool_call_id": call["id"]}))
        turns.append(Turn("assistant", answer, extra))
    return Conversation(tuple(turns), "c", "s", TOOLS if tools else None)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(dialogue=dialogues)
def test_random_conversations(name: str, dialogue: Any, make_family: MakeFamily) -> None:
    family, tokenizer = FAMILIES[name], make_family(name)
    chat = build(family, *dialogue)
    masked = Masker(tokenizer).mask([chat])[0]
    assert supervised(tokenizer, masked) == said(family, chat.turns)

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speculators.config.schema import MultiTurn
from speculators.data.masking import Masked, Masker, tag_spans
from speculators.data.probe import MaskMethod, probe_template
from speculators.data.template import VerifierTokenizer
from speculators.data.types import Conversation, Turn

MakeTokenizer = Callable[..., VerifierTokenizer]
Chat = Callable[..., Conversation]


def supervised_texts(tokenizer: VerifierTokenizer, masked: Masked) -> list[list[str]]:
    """Per row, the text of every supervised run."""
    rows = []
    for row in masked.rows:
        edges = np.flatnonzero(np.diff(np.r_[0, row.loss_mask.astype(int), 0])).reshape(-1, 2)
        rows.append([tokenizer.decode(row.input_ids[a:b].tolist()) for a, b in edges])
    return rows


def mask_one(
    tokenizer: VerifierTokenizer, conversation: Conversation, policy: MultiTurn = MultiTurn.auto
) -> Masked:
    return Masker(tokenizer, policy).mask([conversation])[0]


# ---- known answers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "end"),
    [("chatml", "<|im_end|>"), ("chatml_tagged", "<|im_end|>"), ("llama3", "<|eot_id|>")],
)
def test_stable_templates_give_one_row_with_every_answer(
    template: str, end: str, make_tokenizer: MakeTokenizer, chat: Chat
) -> None:
    tokenizer = make_tokenizer(template)
    conversation = chat("Hi", "Hello there!", "Bye", "See you.\n\nSoon.", system="Be kind.")
    masked = mask_one(tokenizer, conversation)
    assert supervised_texts(tokenizer, masked) == [
        ["Hello there!" + end, "See you.\n\nSoon." + end]
    ]
    assert masked.rows[0].input_ids.tolist() == tokenizer.render(conversation.turns)
    assert not masked.unstable


def test_worked_example_of_the_specification() -> None:
    ids = np.array([1, 5, 6, 2, 9, 7, 7, 3, 4])
    tags = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1], dtype=bool)
    assert list(tag_spans(ids, tags, np.array([3]))) == [slice(5, 8)]


def test_tags_without_the_end_token_are_extended_by_it() -> None:
    ids = np.array([1, 7, 7, 3, 4])
    tags = np.array([0, 1, 1, 0, 0], dtype=bool)
    assert list(tag_spans(ids, tags, np.array([3]))) == [slice(1, 4)]
    assert list(tag_spans(ids, tags, np.array([9]))) == [slice(1, 3)]


def test_tagged_template_is_read_by_its_tags(make_tokenizer: MakeTokenizer, chat: Chat) -> None:
    tokenizer = make_tokenizer("chatml_tagged")
    assert probe_template(tokenizer).method is MaskMethod.tags
    # The second answer opens with a space, for which transformers loses the span.
    conversations = [chat("Hi", "Hello", "So?", "Good."), chat("Hi", " \n Hello", "So?", "Good.")]
    by_tags = Masker(tokenizer, use_tags=True).mask(conversations)
    by_prefix = Masker(tokenizer).mask(conversations)
    for tags, prefix in zip(by_tags, by_prefix, strict=True):
        assert supervised_texts(tokenizer, tags) == supervised_texts(tokenizer, prefix)
        assert tags.rows[0].roles == prefix.rows[0].roles


def test_template_that_removes_thinking_from_history_gives_a_row_per_version(
    make_tokenizer: MakeTokenizer, chat: Chat
) -> None:
    tokenizer = make_tokenizer("qwen3")
    masked = mask_one(tokenizer, chat("Hi", "Hello", "So?", "Good."))
    empty = "<think>\n\n</think>\n\n"
    assert supervised_texts(tokenizer, masked) == [
        [empty + "Hello<|im_end|>"],
        [empty + "Good.<|im_end|>"],
    ]
    # The second row shows the first answer as the verifier sees it then: without the block.
    second = tokenizer.decode(masked.rows[1].input_ids.tolist())
    assert "assistant\nHello<|im_end|>" in second
    assert probe_template(tokenizer).rewrites_history


def test_thinking_switched_off_leaves_the_block_to_the_prompt(
    make_tokenizer: MakeTokenizer, chat: Chat
) -> None:
    tokenizer = make_tokenizer("qwen3", enable_thinking=False)
    masked = mask_one(tokenizer, chat("Hi", "Hello"))
    assert supervised_texts(tokenizer, masked) == [["Hello<|im_end|>"]]


def test_reasoning_is_supervised_where_it_is_generated(
    make_tokenizer: MakeTokenizer, chat: Chat
) -> None:
    tokenizer = make_tokenizer("qwen3")
    masked = mask_one(tokenizer, chat("Hi", "Hello", "So?", "Good.", reasoning_content="Hm."))
    block = "<think>\nHm.\n</think>\n\n"
    assert supervised_texts(tokenizer, masked) == [
        [block + "Hello<|im_end|>"],
        [block + "Good.<|im_end|>"],
    ]


def test_tool_calls_are_supervised_and_tool_results_are_not(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("qwen3", enable_thinking=False)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = (
        Turn("user", "Add."),
        Turn("assistant", "", {"tool_calls": [call]}),
        Turn("tool", "three"),
        Turn("assistant", "It is 3."),
    )
    tools = [{"type": "function", "function": {"name": "add"}}]
    masked = mask_one(tokenizer, Conversation(turns, "c", "s", tools))
    texts = [text for row in supervised_texts(tokenizer, masked) for text in row]
    assert texts == [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>',
        "It is 3.<|im_end|>",
    ]
    roles = masked.rows[-1].roles
    assert roles["tool"][1] == 0
    assert roles["user"][1] == 0


def test_policies_for_several_turns(make_tokenizer: MakeTokenizer, chat: Chat) -> None:
    tokenizer = make_tokenizer("chatml")
    conversation = chat("a", "one", "b", "two", "c", "three")
    ends = [f"{text}<|im_end|>" for text in ("one", "two", "three")]
    by_turn = mask_one(tokenizer, conversation, MultiTurn.per_turn)
    assert supervised_texts(tokenizer, by_turn) == [[end] for end in ends]
    last = mask_one(tokenizer, conversation, MultiTurn.last)
    assert supervised_texts(tokenizer, last) == [ends[-1:]]
    assert supervised_texts(tokenizer, mask_one(tokenizer, conversation)) == [ends]


def test_answer_that_merges_with_the_header_begins_with_the_merged_token(
    make_tokenizer: MakeTokenizer, chat: Chat, backend: Any
) -> None:
    tokenizer = make_tokenizer("chatml")
    newlines = backend.encode("\n\n", add_special_tokens=False).ids
    assert len(newlines) == 1, "the fixture must merge two line breaks"
    masked = mask_one(tokenizer, chat("Hi", "\nHello"))
    assert supervised_texts(tokenizer, masked) == [["\n\nHello<|im_end|>"]]


def test_generation_prompt_that_opens_a_think_block_makes_plain_answers_unstable(
    make_tokenizer: MakeTokenizer, chat: Chat
) -> None:
    masked = mask_one(make_tokenizer("thinking_prompt"), chat("Hi", "Hello"))
    assert masked.rows == ()
    assert masked.unstable == (
        "turn 2: the generation prompt's '<think>\\n' is not what the template writes",
    )


def test_answer_that_merges_with_the_header_is_stable_with_tools_too(
    chat: Chat, make_fast: Callable[..., Any]
) -> None:
    template = (
        "{%- if tools -%}{{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' -}}"
        "{%- endif -%}{%- for m in messages -%}"
        "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )
    tokenizer = VerifierTokenizer(make_fast(template), template)
    tools = [{"type": "function", "function": {"name": "add"}}]
    masked = mask_one(tokenizer, Conversation(chat("Hi", "\nHello").turns, "c", "s", tools))
    assert not masked.unstable
    assert supervised_texts(tokenizer, masked) == [["\n\nHello<|im_end|>"]]


def test_refusal_of_the_template_is_the_reason(make_tokenizer: MakeTokenizer) -> None:
    turns = (Turn("user", "a"), Turn("user", "b"), Turn("assistant", "c"))
    masked = mask_one(make_tokenizer("strict"), Conversation(turns, "c", "s"))
    assert masked == Masked(refusal="chat template: roles must alternate")


def test_header_without_special_tokens(make_tokenizer: MakeTokenizer, chat: Chat) -> None:
    tokenizer = make_tokenizer("strict")
    masked = mask_one(tokenizer, chat("Hi", "Hello", "So?", "Good."))
    assert supervised_texts(tokenizer, masked) == [[" Hello<|eot_id|>", " Good.<|eot_id|>"]]
    assert masked.rows[0].input_ids.tolist().count(tokenizer.render([Turn("user", "x")])[0]) == 1


def test_plain_text_of_several_turns_gives_a_row_per_answer(
    make_tokenizer: MakeTokenizer, chat: Chat
) -> None:
    tokenizer = make_tokenizer(None)
    masked = mask_one(tokenizer, chat("Once upon", "a time.", "There was", "a fox."))
    assert supervised_texts(tokenizer, masked) == [
        [" a time.<|end_of_text|>"],
        [" a fox.<|end_of_text|>"],
    ]
    assert tokenizer.decode(masked.rows[1].input_ids.tolist()) == (
        "Once upon a time. There was a fox.<|end_of_text|>"
    )


def test_answer_without_an_end_token_is_counted(chat: Chat, make_fast: Callable[..., Any]) -> None:
    template = (
        "{%- for m in messages -%}{{- '[' + m.role + '] ' + m.content + '\n' -}}{%- endfor -%}"
    )
    template += "{%- if add_generation_prompt -%}{{- '[assistant] ' -}}{%- endif -%}"
    tokenizer = VerifierTokenizer(make_fast(template), template)
    masked = mask_one(tokenizer, chat("Hi", "Hello"))
    assert supervised_texts(tokenizer, masked) == [["Hello\n"]]
    assert masked.rows[0].num_open_turns == 1


def test_answer_that_ends_with_the_token_that_opens_the_next_turn(
    chat: Chat, make_fast: Callable[..., Any]
) -> None:
    """GLM: the verifier stops by writing the header of the user's turn."""
    template = (
        "{%- for m in messages -%}"
        "{{- ('<|im_start|>' if m.role == 'user' else '<|im_end|>') + '\\n' + m.content -}}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_end|>\\n' -}}{%- endif -%}"
    )
    stop = make_fast(None).convert_tokens_to_ids("<|im_start|>")
    tokenizer = VerifierTokenizer(make_fast(template), template, eos_token_ids=[stop])
    masked = mask_one(tokenizer, chat("Hi", "Hello", "So?", "Good."))
    assert supervised_texts(tokenizer, masked) == [["Hello<|im_start|>", "Good."]]
    assert masked.rows[0].num_open_turns == 1


def test_roles_are_audited_independently_of_the_mask(
    make_tokenizer: MakeTokenizer, chat: Chat
) -> None:
    tokenizer = make_tokenizer("llama3")
    row = mask_one(tokenizer, chat("Hello there", "How are you?", system="Be kind.")).rows[0]
    count = {
        role: len(tokenizer.tail_ids(text))
        for role, text in (
            ("user", "Hello there"),
            ("assistant", "How are you?"),
            ("system", "Be kind."),
        )
    }
    assert row.roles["user"] == (count["user"], 0)
    assert row.roles["system"] == (count["system"], 0)
    assert row.roles["assistant"] == (count["assistant"], count["assistant"])
    assert row.roles["template"] == (len(row.input_ids) - sum(count.values()), 1)


# ---- the oracle: method P as the specification has it, every prefix tokenised anew -----------


def reference_rows(
    tokenizer: VerifierTokenizer, conversation: Conversation
) -> list[tuple[list[int], list[bool]]]:
    """Data specification, section 3, word for word (multi_turn=auto)."""

    def render(turns: Sequence[Turn], *, prompt: bool) -> list[int]:
        return tokenizer.render(turns, conversation.tools, add_generation_prompt=prompt)

    turns = conversation.turns
    spans: list[tuple[list[int], int, int]] = []
    for j in (i for i, turn in enumerate(turns) if turn.role == "assistant"):
        p, f = render(turns[:j], prompt=True), render(turns[: j + 1], prompt=False)
        c = next((i for i, (a, b) in enumerate(zip(p, f, strict=False)) if a != b), len(p))
        if c < len(p):
            bare = render(turns[:j], prompt=False)
            rest = tokenizer.decode(p[c:])
            blank = re.sub(r"\s", "", rest) in ("", "<think></think>")
            if not (blank and p[: len(bare)] == bare and f[: len(bare)] == bare and c >= len(bare)):
                continue
        ends = [i for i in range(c, len(f)) if f[i] in tokenizer.end_of_turn_ids]
        spans.append((f, c, ends[-1] + 1 if ends else len(f)))
    rows: list[tuple[list[int], list[bool]]] = []
    for f, start, stop in reversed(spans):
        home = next((row for row in reversed(rows) if row[0][:stop] == f[:stop]), None)
        if home is None:
            home = (f, [False] * len(f))
            rows.append(home)
        home[1][start:stop] = [True] * (stop - start)
    return rows[::-1]


pieces = st.sampled_from(
    [
        "Hello",
        " there",
        "\n",
        "\n\n",
        " ",
        "  ",
        "!",
        "é",
        "日本",
        "assistant",
        "<think>",
        "ok.",
        "x",
    ]
)
contents = st.lists(pieces, min_size=1, max_size=5).map("".join)
answers = contents.filter(lambda text: bool(text.strip()))


exchange = st.tuples(contents, answers, st.none() | answers)
dialogues = st.tuples(st.none() | contents, st.lists(exchange, min_size=1, max_size=3))
"""System text, then question, answer and reasoning of every exchange: plain values, because the
run-time type checker draws random numbers when a `Conversation` is built."""


def build(system: str | None, exchanges: Sequence[tuple[str, str, str | None]]) -> Conversation:
    turns = [Turn("system", system)] if system is not None else []
    for question, answer, reasoning in exchanges:
        extra = {} if reasoning is None else {"reasoning_content": reasoning}
        turns += [Turn("user", question), Turn("assistant", answer, extra)]
    return Conversation(tuple(turns), "c", "s")


@pytest.mark.parametrize(
    "template", ["chatml", "chatml_tagged", "qwen3", "llama3", "thinking_prompt", None]
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(dialogue=dialogues)
def test_rows_equal_those_of_the_definition(
    template: str | None, dialogue: Any, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer, conversation = make_tokenizer(template), build(*dialogue)
    masked = Masker(tokenizer).mask([conversation])[0]
    rows = [(row.input_ids.tolist(), row.loss_mask.tolist()) for row in masked.rows]
    assert rows == reference_rows(tokenizer, conversation)


def test_probe_names_what_a_template_refuses(make_tokenizer: MakeTokenizer) -> None:
    probe = probe_template(make_tokenizer("strict"))
    assert probe.refused == ("system turn", "reasoning", "tools")
    assert probe.method is MaskMethod.prefix
    assert not probe.rewrites_history

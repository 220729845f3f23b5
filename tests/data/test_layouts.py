from __future__ import annotations

from typing import Any

import pytest

from speculators.config.schema import DataFormat
from speculators.data.layouts import parse_row
from speculators.data.rows import RowError, Severity, TokenRow
from speculators.data.types import Conversation


def parse(row: Any, layout: DataFormat = DataFormat.auto) -> Conversation:
    item = parse_row(row, source="s", vocab_size=100, layout=layout)
    assert isinstance(item, Conversation)
    return item


def turns(row: Any) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in parse(row).turns]


def refusal(row: Any, layout: DataFormat = DataFormat.auto) -> RowError:
    with pytest.raises(RowError) as caught:
        parse_row(row, source="s", vocab_size=100, layout=layout)
    return caught.value


def shared(*pairs: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": a, "value": b} for a, b in pairs], **more}


def chat(*pairs: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": a, "content": b} for a, b in pairs], **more}


TWO = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    "row",
    [
        chat(("user", "q"), ("assistant", "a")),
        shared(("human", "q"), ("gpt", "a")),
        shared(("Human ", "q"), ("chatgpt", "a")),
        {
            "conversations": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a"},
            ]
        },
        {"conversation": [{"from": "user", "value": "q"}, {"from": "bard", "value": "a"}]},
        {"prompt": "q", "response": "a"},
        {"question": "q", "answer": "a"},
        {"instruction": "q", "input": "", "output": "a"},
        {"input": [{"role": "user", "content": "q"}], "output": "a"},
        {
            "prompt": [{"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "a"}],
        },
        chat(("user", [{"type": "text", "text": "q"}]), ("assistant", ["a"])),
    ],
)
def test_layouts_are_recognised(row: dict[str, Any]) -> None:
    assert turns(row) == TWO


def test_instruction_with_context_and_system() -> None:
    row = {
        "instruction": "Sum up.",
        "input": "Long text.",
        "output": "Short.",
        "system": "Be brief.",
    }
    assert turns(row) == [
        ("system", "Be brief."),
        ("user", "Sum up.\n\nLong text."),
        ("assistant", "Short."),
    ]


def test_roles_are_mapped() -> None:
    row = chat(("developer", "d"), ("user", "q"), ("function", "f"), ("assistant", "a"))
    assert [role for role, _ in turns(row)] == ["system", "user", "tool", "assistant"]


def test_useless_turns_are_cut() -> None:
    row = shared(("system", "s"), ("gpt", "x"), ("human", "q"), ("gpt", "a"), ("human", "z"))
    assert turns(row) == [("system", "s"), ("user", "q"), ("assistant", "a")]


def test_tool_calls_of_both_layouts() -> None:
    call = '{"name": "add", "arguments": {"a": 1}}'
    row = shared(
        ("human", "q"),
        ("function_call", call),
        ("observation", "1"),
        ("gpt", "a"),
        tools='[{"name": "add"}]',
    )
    conversation = parse(row)
    expected = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert conversation.turns[1].extra == {"tool_calls": [expected]}
    assert conversation.turns[1].role == "assistant"
    assert conversation.tools == [{"type": "function", "function": {"name": "add"}}]
    calls = [{"id": "1", "function": {"name": "add", "arguments": '{"a": 1}'}}]
    item = {"role": "assistant", "content": None, "tool_calls": calls}
    extra = parse({"messages": [{"role": "user", "content": "q"}, item]}).turns[1].extra
    assert extra == {"tool_calls": [{"id": "1", **expected}]}


def test_tools_reach_the_template_as_a_server_would_pass_them() -> None:
    function = {"name": "add", "parameters": {"type": "object"}}
    wrapped = {"type": "function", "function": function}
    other = {"type": "web_search", "name": "search"}
    given = [
        function,
        {"type": "function", **function},
        wrapped,
        {"function": function},
        {"type": None, **function},
        {"type": None, "function": function},
        other,
    ]
    tools = parse(chat(*TWO, tools=given)).tools or []
    assert tools == [*[wrapped] * 6, other]
    # Templates write them as JSON, in this order.
    assert {tuple(tool) for tool in tools[:6]} == {("type", "function")}


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_one_name(key: str) -> None:
    item = {"role": "assistant", "content": "a", key: "because"}
    row = {"messages": [{"role": "user", "content": "q"}, item]}
    assert parse(row).turns[1].extra == {"reasoning_content": "because"}


def test_only_answers_have_reasoning() -> None:
    asked = {"role": "user", "content": "q", "reasoning": {"effort": "high"}, "thinking": "hm"}
    item = {"role": "assistant", "content": "a", "reasoning": {"effort": "low"}, "thinking": "so"}
    user, assistant = parse({"messages": [asked, item]}).turns
    assert (user.extra, assistant.extra) == ({}, {"reasoning_content": "so"})


def test_conversation_id_is_the_row_s_own_or_a_hash_of_the_content() -> None:
    assert parse({**chat(*TWO), "id": 7}).conversation_id == "7"
    assert parse({**chat(*TWO), "id": 7, "conversation_id": "tree"}).conversation_id == "tree"
    by_content = parse(chat(*TWO)).conversation_id
    assert by_content == parse(shared(("human", "q"), ("gpt", "a"))).conversation_id
    assert by_content != parse(chat(("user", "q"), ("assistant", "b"))).conversation_id


def test_tokens_are_used_unchanged() -> None:
    row = {"input_ids": [1, 2, 99], "loss_mask": [0, 1, True], "id": "x"}
    item = parse_row(row, source="s", vocab_size=100)
    assert isinstance(item, TokenRow)
    assert item.input_ids.tolist() == [1, 2, 99]
    assert item.loss_mask.tolist() == [False, True, True]
    assert item.conversation_id == "x"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "not an object: the row is a list"),
        (
            {"text": "x"},
            "unknown layout: keys text (expected messages, conversations, prompt and response, or "
            "input_ids and loss_mask)",
        ),
        ({"messages": None}, "not a list of turns: messages is null"),
        ({"messages": ["x"]}, "not a turn: turn 1 is text"),
        (chat((None, "x")), "turn without a role: turn 1: role is null"),  # type: ignore[arg-type]
        (
            chat(("user", None), ("assistant", "a")),
            "turn without content: turn 1: content is null or missing",
        ),
        (shared(("human", 3), ("gpt", "a")), "content is no text: turn 1: value is a number"),
        (
            chat(("user", [{"type": "image_url"}]), ("assistant", "a")),
            "content is no text: turn 1: a part of type 'image_url'",
        ),
        (
            shared(("human", "q"), ("function_call", "{")),
            "malformed tool call: turn 2: Expecting property name enclosed in double quotes "
            "at column 2",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a", "thinking": [{"a": 1}]},
                ]
            },
            "reasoning is no text: turn 2: it is a list",
        ),
        (
            chat(*TWO, tools="{"),
            "malformed tools: Expecting property name enclosed in double quotes at column 2",
        ),
        ({"input_ids": [1, 2]}, "unknown layout: pre-tokenised row without loss_mask"),
        (
            {"input_ids": [1, 2], "loss_mask": [1]},
            "mask of another length: 2 input_ids, 1 loss_mask entries",
        ),
        (
            {"input_ids": [1, 100], "loss_mask": [0, 1]},
            "token outside the vocabulary: input_ids[1]=100, allowed 0..99",
        ),
        (
            {"input_ids": [1, -1], "loss_mask": [0, 1]},
            "token outside the vocabulary: input_ids[1]=-1, allowed 0..99",
        ),
        (
            {"input_ids": [1, 2], "loss_mask": [0, 2]},
            "malformed mask: loss_mask[1]=2, allowed 0 and 1",
        ),
        ({"input_ids": [1, 2.5], "loss_mask": [0, 1]}, "not a list of integers: input_ids"),
        ({"input_ids": None, "loss_mask": [0, 1]}, "not a list of integers: input_ids"),
        ({"input_ids": [10**30], "loss_mask": [1]}, "not a list of integers: input_ids"),
        (
            {"prompt": "q", "response": None},
            "turn without content: turn 2: response is null or missing",
        ),
    ],
)
def test_bad_rows_say_what_is_wrong(row: Any, message: str) -> None:
    error = refusal(row)
    assert str(error) == message
    assert error.severity is Severity.bad


def test_unknown_role_names_the_known_ones() -> None:
    message = str(refusal(shared(("narrator", "x"), ("gpt", "a"))))
    assert message.startswith("unknown role: 'narrator' in turn 1 (known: system, developer, user,")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "empty conversation"),
        (chat(("user", "q")), "no assistant turn"),
        (shared(("gpt", "a")), "no assistant turn after a user turn"),
        (chat(("user", "q"), ("assistant", " \n")), "empty assistant turn: turn 2"),
        ({"input_ids": [], "loss_mask": []}, "empty conversation: input_ids is empty"),
        ({"input_ids": [1, 2], "loss_mask": [0, 0]}, "no supervised token: loss_mask is all zero"),
    ],
)
def test_rows_without_anything_to_learn(row: Any, message: str) -> None:
    error = refusal(row)
    assert str(error) == message
    assert error.severity is Severity.unusable


def test_given_layout_is_demanded() -> None:
    assert str(refusal({"prompt": "q", "response": "a"}, DataFormat.messages)) == (
        "unknown layout: no 'messages' in the row"
    )
    assert str(refusal(chat(*TWO), DataFormat.tokens)) == (
        "unknown layout: pre-tokenised row without input_ids"
    )
    both = {**chat(*TWO), "prompt": "p", "response": "r"}
    assert parse(both, DataFormat.prompt_response).turns[0].content == "p"

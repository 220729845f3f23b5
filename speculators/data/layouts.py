"""One parsed row -> a conversation (or tokens), whatever layout it has.

Layouts are recognised row by row (data specification, section 1). A row that cannot be used
raises `RowError` with a reason that reports count and a detail that names the place in the row.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from speculators.config.schema import DataFormat
from speculators.data.malformed import MALFORMED, json_detail
from speculators.data.rows import RowError, Severity, TokenRow, printable
from speculators.data.types import Conversation, Turn

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "ipython"), "tool"),
}
"""Role names of public data sets, lower case, and what they mean here."""
CALL_ROLES = ("function_call", "tool_call")
"""Speakers whose value is the JSON of a tool call: an assistant turn."""
UNKNOWN_ROLE = "unknown role"
"""Reason of rows that `data.unknown_role` decides about."""

_REASONING = ("reasoning_content", "reasoning", "thinking")
_PROMPTS = ("prompt", "question", "instruction", "query", "input")
_RESPONSES = ("response", "answer", "output", "completion")
_SYSTEMS = ("system", "system_prompt")
_IDS = ("conversation_id", "id", "uuid")


def parse_row(
    row: Any, *, source: str, vocab_size: int, layout: DataFormat = DataFormat.auto
) -> Conversation | TokenRow:
    """Interpret one row.

    Args:
        row: parsed JSON.
        source: file or data set, for reports.
        vocab_size: embedding rows of the verifier; ids of pre-tokenised rows lie below it.
        layout: layout to expect; `auto` recognises it by the keys.

    Raises:
        RowError: the row is bad, or there is nothing to learn from it.
    """
    if not isinstance(row, Mapping):
        raise RowError("not an object", f"the row is {_kind(row)}")
    if layout is DataFormat.auto:
        layout = _recognise(row)
    if layout is DataFormat.tokens:
        return _tokens(row, source, vocab_size)
    return _conversation(row, _READERS[layout](row), source)


def _recognise(row: Mapping[str, Any]) -> DataFormat:
    # Tables give every row every column: one without a value does not tell the layout.
    filled = {key for key, value in row.items() if value is not None}
    for present in (filled, row.keys()):
        if "input_ids" in present:
            return DataFormat.tokens
        if "messages" in present:
            return DataFormat.messages
        if "conversations" in present or "conversation" in present:
            return DataFormat.sharegpt
        if present & set(_PROMPTS) and present & set(_RESPONSES):
            return DataFormat.prompt_response
    keys = ", ".join(map(str, list(row)[:6])) or "none"
    raise RowError(
        "unknown layout",
        f"keys {keys} (expected messages, conversations, prompt and response, or input_ids "
        "and loss_mask)",
    )


def _conversation(row: Mapping[str, Any], turns: list[Turn], source: str) -> Conversation:
    turns = _usable(turns)
    tools = _tools(row.get("tools"))
    identity = _identity(row)
    if identity is None:
        content = [[turn.role, turn.content, dict(turn.extra)] for turn in turns]
        text = json.dumps([content, tools], ensure_ascii=False, sort_keys=True, default=str)
        identity = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return Conversation(tuple(turns), identity, source, tools)


def _identity(row: Mapping[str, Any]) -> str | None:
    """Return the row's own id: rows with the same one never stand on both sides of the split."""
    found = (row.get(key) for key in _IDS)
    return next((printable(value) for value in found if value is not None), None)


def _usable(turns: list[Turn]) -> list[Turn]:
    """Cut what teaches nothing: assistant turns nobody asked for, and what follows the last."""
    if not turns:
        raise RowError("empty conversation", severity=Severity.unusable)
    if not any(turn.role == "assistant" for turn in turns):
        raise RowError("no assistant turn", severity=Severity.unusable)
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), len(turns))
    kept = [turn for turn in turns[:first] if turn.role == "system"] + turns[first:]
    while kept and kept[-1].role != "assistant":
        kept.pop()
    if not kept:
        raise RowError("no assistant turn after a user turn", severity=Severity.unusable)
    for number, turn in enumerate(turns, 1):
        silent = not (turn.content.strip() or _says_something(turn))
        if silent and turn.role in ("user", "assistant"):
            raise RowError(f"empty {turn.role} turn", f"turn {number}", Severity.unusable)
    return kept


def _says_something(turn: Turn) -> bool:
    return bool(turn.extra.get("tool_calls") or turn.extra.get("reasoning_content"))


def _messages(row: Mapping[str, Any]) -> list[Turn]:
    return _turns(row, "messages", "role", "content")


def _sharegpt(row: Mapping[str, Any]) -> list[Turn]:
    key = "conversations" if "conversations" in row else "conversation"
    return _turns(row, key, "from", "value")


def _turns(row: Mapping[str, Any], key: str, role: str, content: str) -> list[Turn]:
    if key not in row:
        raise RowError("unknown layout", f"no {key!r} in the row")
    items = row[key]
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise RowError("not a list of turns", f"{key} is {_kind(items)}")
    turns = [_turn(item, number, role, content) for number, item in enumerate(items, 1)]
    if any(turn.role == "system" for turn in turns):
        return turns
    return [*_system(row), *turns]


def _system(row: Mapping[str, Any]) -> list[Turn]:
    found = (row.get(key) for key in _SYSTEMS)
    text = next((value for value in found if isinstance(value, str) and value.strip()), None)
    return [] if text is None else [Turn("system", text)]


def _turn(item: Any, number: int, role_key: str, content_key: str) -> Turn:
    if not isinstance(item, Mapping):
        raise RowError("not a turn", f"turn {number} is {_kind(item)}")
    if role_key not in item:
        role_key, content_key = ("role", "content") if "role" in item else ("from", "value")
    name = item.get(role_key)
    if not isinstance(name, str):
        raise RowError("turn without a role", f"turn {number}: {role_key} is {_kind(name)}")
    name = name.strip().lower()
    extra = _extra(item, number, answers=ROLES.get(name) == "assistant")
    if name in CALL_ROLES:
        return _call_turn(item.get(content_key), number)
    if name not in ROLES:
        raise RowError(UNKNOWN_ROLE, f"{name!r} in turn {number} (known: {', '.join(ROLES)})")
    answers = "tool_calls" in extra or "reasoning_content" in extra
    content = _content(item.get(content_key), number, content_key, optional=answers)
    return Turn(ROLES[name], content, extra)


def _content(value: Any, number: int, key: str, *, optional: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        if optional:
            return ""
        raise RowError("turn without content", f"turn {number}: {key} is null or missing")
    if isinstance(value, Sequence):
        return "".join(_part(part, number) for part in value)
    raise RowError("content is no text", f"turn {number}: {key} is {_kind(value)}")


def _part(part: Any, number: int) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else _kind(part)
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise RowError("content is no text", f"turn {number}: a part of type {kind!r}")


def _extra(item: Mapping[str, Any], number: int, *, answers: bool) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    reasoning = _reasoning(item, number) if answers else None
    if reasoning is not None:
        extra["reasoning_content"] = reasoning
    calls = item.get("tool_calls")
    if calls:
        if not isinstance(calls, Sequence) or not all(isinstance(c, Mapping) for c in calls):
            raise RowError("malformed tool call", f"turn {number}: tool_calls is {_kind(calls)}")
        extra["tool_calls"] = [_call(call) for call in calls]
    for key in ("tool_call_id", "name"):
        if isinstance(item.get(key), str):
            extra[key] = item[key]
    return extra


def _reasoning(item: Mapping[str, Any], number: int) -> str | None:
    # Under the same names others keep a flag, or the settings of a request.
    found = [item[key] for key in _REASONING if item.get(key)]
    text = next((value for value in found if isinstance(value, str)), None)
    other = next((value for value in found if not isinstance(value, bool)), None)
    if text is None and other is not None:
        raise RowError("reasoning is no text", f"turn {number}: it is {_kind(other)}")
    return text


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool call in one shape, its arguments as an object where they can be read."""
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError("malformed tool call", "a call names no function")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        with contextlib.suppress(*MALFORMED):
            arguments = json.loads(arguments)
    shaped = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **shaped} if isinstance(call.get("id"), str) else shaped


def _call_turn(value: Any, number: int) -> Turn:
    if not isinstance(value, str):
        raise RowError("malformed tool call", f"turn {number}: the call is {_kind(value)}")
    try:
        calls = json.loads(value)
    except MALFORMED as error:
        raise RowError("malformed tool call", f"turn {number}: {json_detail(error)}") from error
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, Mapping) for call in calls):
        raise RowError("malformed tool call", f"turn {number}: no object with name and arguments")
    return Turn("assistant", "", {"tool_calls": [_call(call) for call in calls]})


def _tools(value: Any) -> list[Mapping[str, Any]] | None:
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except MALFORMED as error:
            raise RowError("malformed tools", json_detail(error)) from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError("malformed tools", f"tools is {_kind(value)}, not a list of objects")
    return [_tool(tool) for tool in value]


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a definition as servers hand it to templates: a function says that it is one."""
    if (tool.get("type") or "function") != "function":
        return tool
    rest = {key: value for key, value in tool.items() if key != "type"}
    if isinstance(rest.get("function"), Mapping):
        return {"type": "function", **rest}
    if "function" in rest or not isinstance(rest.get("name"), str):
        return tool
    return {"type": "function", "function": rest}


def _prompt_response(row: Mapping[str, Any]) -> list[Turn]:
    prompt_key, response_key = _key(row, _PROMPTS), _key(row, _RESPONSES)
    if prompt_key is None or response_key is None:
        raise RowError("unknown layout", "no prompt and response in the row")
    prompt, response = row[prompt_key], row[response_key]
    if isinstance(prompt, list):
        turns = _turns(row, prompt_key, "role", "content")
    else:
        turns = [*_system(row), *_history(row.get("history"))]
        text = _content(prompt, len(turns) + 1, prompt_key, optional=False)
        context = row.get("input") if prompt_key == "instruction" else None
        if isinstance(context, str) and context.strip():
            text = f"{text}\n\n{context}"
        turns.append(Turn("user", text))
    if isinstance(response, list):
        return turns + _turns(row, response_key, "role", "content")
    answer = _content(response, len(turns) + 1, response_key, optional=False)
    return [*turns, Turn("assistant", answer)]


def _key(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the first of the names with a value, else the first that is there at all."""
    present = [name for name in names if name in row]
    return next((name for name in present if row[name] is not None), next(iter(present), None))


def _history(value: Any) -> list[Turn]:
    """Return earlier exchanges of an alpaca row: a list of [question, answer]."""
    if value is not None and not isinstance(value, list):
        raise RowError("malformed history", f"history is {_kind(value)}")
    turns: list[Turn] = []
    for number, pair in enumerate(value or [], 1):
        if not (isinstance(pair, Sequence) and len(pair) == 2 and all(map(_is_text, pair))):
            raise RowError("malformed history", f"exchange {number} is no [question, answer]")
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return turns


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _tokens(row: Mapping[str, Any], source: str, vocab_size: int) -> TokenRow:
    if "input_ids" not in row or "loss_mask" not in row:
        missing = "loss_mask" if "input_ids" in row else "input_ids"
        raise RowError("unknown layout", f"pre-tokenised row without {missing}")
    ids, mask = _integers(row, "input_ids"), _integers(row, "loss_mask")
    if len(ids) == 0:
        raise RowError("empty conversation", "input_ids is empty", Severity.unusable)
    if len(ids) != len(mask):
        raise RowError(
            "mask of another length", f"{len(ids)} input_ids, {len(mask)} loss_mask entries"
        )
    outside = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if len(outside):
        raise RowError(
            "token outside the vocabulary",
            f"input_ids[{outside[0]}]={ids[outside[0]]}, allowed 0..{vocab_size - 1}",
        )
    wrong = np.flatnonzero((mask != 0) & (mask != 1))
    if len(wrong):
        raise RowError("malformed mask", f"loss_mask[{wrong[0]}]={mask[wrong[0]]}, allowed 0 and 1")
    if not mask.any():
        raise RowError("no supervised token", "loss_mask is all zero", Severity.unusable)
    return TokenRow(ids, mask.astype(bool), _identity(row), source)


def _integers(row: Mapping[str, Any], key: str) -> np.ndarray:
    values = row[key]
    if isinstance(values, list) and all(type(value) in (int, bool) for value in values):
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            pass
    raise RowError("not a list of integers", key)


def _kind(value: Any) -> str:
    names = {type(None): "null", str: "text", list: "a list", dict: "an object", bool: "a boolean"}
    return names.get(type(value), "a number")


_READERS: dict[DataFormat, Callable[[Mapping[str, Any]], list[Turn]]] = {
    DataFormat.messages: _messages,
    DataFormat.sharegpt: _sharegpt,
    DataFormat.prompt_response: _prompt_response,
}

"""Where a chat template comes from, and what it may answer to turns it was not written for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from speculators.errors import ConfigError, DataError

PLAIN, AUTO = "plain", "auto"
"""Values of `verifier.template` that are no path."""
KEY = "verifier.template"


class TemplateRefusalError(DataError):
    """The chat template refuses a conversation (for example two user turns in a row)."""


REFUSALS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    RecursionError,
)
"""What a template can raise over turns it was not written for."""


_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


def reasoning_key(source: str) -> str:
    """Return the field under which a template looks for the reasoning of a turn."""
    for key in _REASONING_KEYS:
        if re.search(rf"""(\.{key}\b)|(\[['"]{key}['"]\])|(['"]{key}['"]\s+in\b)""", source):
            return key
    return _REASONING_KEYS[0]


def renamed_reasoning(extra: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the fields of a turn with its reasoning under the template's own name for it."""
    fields = dict(extra)
    if "reasoning_content" in fields:
        fields[key] = fields.pop("reasoning_content")
    return fields


def with_text_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages with the arguments of tool calls as JSON text: some templates want that."""
    changed = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": _as_json(call["function"])}}
            for call in message.get("tool_calls", ())
        ]
        changed.append({**message, "tool_calls": calls} if calls else message)
    return changed


def _as_json(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def choose_template(choice: str, own: Any) -> tuple[Any, list[str]]:
    """Return the template's source (None: plain text) and what to tell the user about it."""
    if choice == PLAIN:
        return None, []
    if choice == AUTO:
        if not own:
            return None, [
                "the tokenizer has no chat template: turns are joined as plain text "
                f"({KEY}=FILE.jinja gives it one)"
            ]
        return own, _date_notice(own)
    try:
        source = Path(choice).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(
            f"{KEY}={choice}: cannot be read ({reason}); allowed: auto, plain, or the path of a "
            "Jinja file"
        ) from error
    return source, _date_notice(source)


def _date_notice(source: Any) -> list[str]:
    if "strftime_now" not in str(source):
        return []
    return [
        "the chat template prints today's date: the prepared data changes every day unless "
        "verifier.template_arguments fixes it"
    ]

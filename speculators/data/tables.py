"""Rows of tables: what columns of one type put into them, taken out again.

A table knows one set of fields for all its rows, so a tool call `{"city": "Oslo"}` comes out with
the arguments of every other call in the table, as nulls. A template would render them, and the
drafter would learn calls that nobody made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_CALLS = ("tool_calls", "tools")


def without_filling(row: Any, columns: Collection[str]) -> Any:
    """Return a row without the nulls inside its tool calls and tool definitions.

    Args:
        row: as the table gives it.
        columns: those that hold fields of one type; others hold JSON and are left as they are.
    """
    if not isinstance(row, Mapping):
        return row
    return {
        key: _emptied(value, key in _CALLS) if key in columns else value
        for key, value in row.items()
    }


def typed_columns(features: Mapping[str, Any] | None) -> list[str]:
    """Return the columns of a `datasets` table that hold no JSON."""
    return [name for name, kind in (features or {}).items() if "Json(" not in repr(kind)]


def _emptied(value: Any, inside: bool) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _emptied(item, inside or key in _CALLS)
            for key, item in value.items()
            if not (inside and item is None)
        }
    if isinstance(value, list) and value and not isinstance(value[0], int | str):
        return [_emptied(item, inside) for item in value]
    return value

"""Rows of tables: what columns of one type put into them, taken out again.

A table knows one set of fields for all its rows, so a tool call `{"city": "Oslo"}` comes out with
the arguments of every other call in the table, as nulls. A template would render them, and the
drafter would learn calls that nobody made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CALLS = ("tool_calls", "tools")


def without_filling(row: Any, columns: Mapping[str, Any]) -> Any:
    """Return a row without the nulls inside its tool calls and tool definitions.

    Args:
        row: as the table gives it.
        columns: type of each column that may be filled, as `datasets` describes it (what it says
            to be JSON is filled nowhere); None: filled throughout.
    """
    if not isinstance(row, Mapping):
        return row
    return {
        key: _emptied(value, columns[key], key in _CALLS) if key in columns else value
        for key, value in row.items()
    }


def json_types(schema: Any) -> Mapping[str, Any] | None:
    """Return the types of the columns of a pyarrow schema, if JSON is among them.

    Returns:
        `datasets.Features`, whose `decode_example` reads the JSON of a row.
    """
    if "extension<arrow.json>" not in str(schema):
        return None
    import datasets

    # Other types than those of the columns (pictures, say) are said in the metadata.
    return datasets.Features.from_arrow_schema(schema.remove_metadata())


def _emptied(value: Any, kind: Any, inside: bool) -> Any:
    if type(kind).__name__ == "Json":
        return value
    if isinstance(value, Mapping):
        kinds = kind if isinstance(kind, Mapping) else {}
        return {
            key: _emptied(item, kinds.get(key), inside or key in _CALLS)
            for key, item in value.items()
            if not (inside and item is None)
        }
    if isinstance(value, list) and value and not isinstance(value[0], int | str):
        kind = kind[0] if isinstance(kind, list) else getattr(kind, "feature", None)
        return [_emptied(item, kind, inside) for item in value]
    return value

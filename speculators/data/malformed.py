"""What Python's JSON parser raises over text that is no JSON, in a person's words."""

from __future__ import annotations

import json

MALFORMED = (ValueError, RecursionError)
"""Not only `JSONDecodeError`: a number of thousands of digits is a plain `ValueError`."""


def json_detail(error: ValueError | RecursionError) -> str:
    """Return what is wrong, and in which column where the parser knows it."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return "a number with too many digits"
    # Some of the parser's messages end with their own "at".
    return f"{error.msg.removesuffix(' starting at').removesuffix(' at')} at column {error.colno}"

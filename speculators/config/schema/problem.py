"""One finding of a schema about itself, before the dotted path is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple


class Problem(NamedTuple):
    """A field that cannot stand.

    Attributes:
        field: name of the field, relative to the schema that found it (may be dotted).
        value: what was given.
        message: why not, what is allowed, what to do; continues the line after the value.
    """

    field: str
    value: Any
    message: str


def at_least(schema: object, field: str, low: float) -> Iterator[Problem]:
    """Yield a problem when a number is set and below `low`."""
    value = getattr(schema, field)
    if value is not None and value < low:
        yield Problem(field, value, f"must be {low} or more")


def between(schema: object, field: str, low: float, high: float) -> Iterator[Problem]:
    """Yield a problem when a number is set and outside `low <= value <= high`."""
    value = getattr(schema, field)
    if value is not None and not low <= value <= high:
        yield Problem(field, value, f"must lie between {low} and {high}")


def below_one(schema: object, field: str) -> Iterator[Problem]:
    """Yield a problem when a number is outside `0 <= value < 1`."""
    value = getattr(schema, field)
    if not 0 <= value < 1:
        yield Problem(field, value, "must be 0 or more and below 1")


def positive(schema: object, field: str) -> Iterator[Problem]:
    """Yield a problem when a number is set and not above zero."""
    value = getattr(schema, field)
    if value is not None and not value > 0:
        yield Problem(field, value, "must be greater than 0")

"""Checks a typed configuration as a whole and reports every problem at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from speculators.config.discovery import variants
from speculators.config.schema import Config
from speculators.config.wording import line
from speculators.errors import ConfigError


def validate(config: Config) -> None:
    """Check ranges and combinations.

    Raises:
        ConfigError: one line per problem, opening with the dotted path.
    """
    if problems := list(find_problems(config)):
        raise ConfigError(problems)


def find_problems(schema: Any, path: str = "") -> Iterator[str]:
    """Yield what `schema` and everything below it say about themselves.

    Args:
        schema: a dataclass instance; its `problems()` is asked when it has one.
        path: where it stands, dotted; empty for the whole configuration.
    """
    prefix = f"{path}." if path else ""
    yield from _wrong_name(schema, path)
    if hasattr(schema, "problems"):
        for problem in schema.problems():
            yield line(prefix + problem.field, problem.value, problem.message)
    for field in fields(schema):
        value = getattr(schema, field.name)
        if is_dataclass(value):
            yield from find_problems(value, prefix + field.name)
        elif isinstance(value, float) and not math.isfinite(value):
            yield line(prefix + field.name, value, "must be a finite number")


def _wrong_name(schema: Any, group: str) -> Iterator[str]:
    """A group with one schema per choice: the name must be the schema's own."""
    schemas = variants().get(group)
    if schemas is None or schemas.get(schema.name) is type(schema):
        return
    choices = schema.name if schema.name in schemas else "|".join(schemas)
    yield line(f"{group}.name", schema.name, f"names the schema: choose with {group}={choices}")

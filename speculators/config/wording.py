"""Words for people: values, types, field documentation and near misses in error lines."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import shlex
import textwrap
import types
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any, Union, get_args, get_origin, get_type_hints

_SIMPLE = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a mapping, {key: value}",
}
_PLURAL = {int: "whole numbers, such as [1, 2]", float: "numbers, such as [0.5, 1]"}


def show(value: Any) -> str:
    """Write a value as it would stand on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(show(item) for item in value)}]"
    return str(value)


def line(path: str, value: Any, message: str) -> str:
    """Return one error line: the dotted path, the value, and what is wrong with it."""
    return f"{path}={show(value)}: {message}"


def argument(key: str, value: str) -> str:
    """Return `key=value` as it is typed into a shell, with the quotes that Hydra and it need."""
    if re.fullmatch(r"[A-Za-z0-9_./:+@-]+", value):  # more than these Hydra cannot read bare
        return f"{key}={value}"
    word = f"{key}={quoted(value)}"
    return shlex.quote(word) if re.search(r"['\"\\$`!]", value) else f'"{word}"'


def quoted(value: str) -> str:
    """Return a text in the quotes of Hydra's grammar, so that it is read as it is.

    A backslash stands for itself there, except before a quote and before an interpolation.
    """
    value = re.sub(r"(\\*)'", r"\1\1\\'", literal(value))
    value = re.sub(r"(\\+)\Z", r"\1\1", value)
    return f"'{value}'"


def literal(value: Any) -> Any:
    """Return a value in which OmegaConf replaces nothing, also where an interpolation seems to be.

    Args:
        value: text, a path (which becomes text), lists and mappings of them, anything else.
    """
    if isinstance(value, str | PurePath):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value))
    if isinstance(value, list | tuple):
        return [literal(item) for item in value]
    if isinstance(value, Mapping):
        return {key: literal(item) for key, item in value.items()}
    return value


def describe(hint: Any) -> str:
    """Say in words what values a type takes.

    Args:
        hint: a field's type, resolved.
    """
    if get_origin(hint) in (Union, types.UnionType):
        inner = [part for part in get_args(hint) if part is not type(None)]
        return " or ".join(describe(part) for part in inner) + ", or null"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(member.name for member in hint)
    origin = get_origin(hint) or hint
    if origin is list:
        (item,) = get_args(hint) or (str,)
        return f"a list of {_PLURAL.get(item, 'texts, such as [a, b]')}"
    if is_dataclass(origin):
        return "a group of keys"
    return _SIMPLE.get(origin, "any value")


def enum_names(hint: Any) -> list[str]:
    """Return the names an enum field takes; empty for any other field."""
    parts = [hint, *get_args(hint)]
    enums = [part for part in parts if isinstance(part, type) and issubclass(part, Enum)]
    return [member.name for enum in enums for member in enum]


def field_hint(schema: type, name: str) -> Any:
    """Return the resolved type of a field, or None when there is no such field."""
    return get_type_hints(schema).get(name)


def field_doc(schema: type, name: str) -> str:
    """Return the documentation that stands under a field, in one line; empty when there is none.

    A schema that gives a field of its base another default need not say again what it means.
    """
    owners = [owner for owner in schema.__mro__ if name in inspect.get_annotations(owner)]
    return next((doc for owner in owners if (doc := _docs_of(owner).get(name))), "")


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Return the option that `name` was probably meant to be, if one is close.

    One that goes on as `name` begins comes before one that is nearer by letters.
    """
    close = difflib.get_close_matches(name, list(options), n=3, cutoff=0.6)
    return next((option for option in close if option.startswith(name)), next(iter(close), None))


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return ` did you mean X?`, or nothing."""
    found = nearest(name, options)
    return f" did you mean {found}?" if found else ""


def _docs_of(schema: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        match field, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docs[name] = " ".join(text.split())
    return docs

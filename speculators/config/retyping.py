"""Types of a configuration that was changed in Python, where nothing held them.

`dataclasses.replace` takes any value. Here every value is set on the schema of its group once
more, as a composed one was: a name of an enum becomes the member, what does not fit is named.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from speculators.config.schema import Config
from speculators.config.wording import describe, line, literal
from speculators.errors import ConfigError


def retyped(config: Config) -> Config:
    """Return a copy whose values have the types of their fields.

    Args:
        config: as composed, or changed since.

    Raises:
        ConfigError: every value that its field does not take.
    """
    problems: list[str] = []
    copy = _group(config, "", problems)
    if problems:
        raise ConfigError(problems)
    return copy


def _group(part: Any, path: str, problems: list[str]) -> Any:
    schema = OmegaConf.structured(type(part))
    hints = get_type_hints(type(part))
    values = {}
    for field in fields(part):
        name, key = field.name, f"{path}.{field.name}" if path else field.name
        value, inner = getattr(part, name), _without_null(hints[name])
        if is_dataclass(_items(inner)) and isinstance(value, Mapping):
            values[name] = {
                item: _below(_items(inner), below, f"{key}.{item}", problems)
                for item, below in value.items()
            }
        elif is_dataclass(inner) and not (value is None and inner is not hints[name]):
            values[name] = _below(inner, value, key, problems)
        else:
            values[name] = _value(schema, name, value, key, hints[name], problems)
    return replace(part, **values)


def _below(schema: Any, value: Any, key: str, problems: list[str]) -> Any:
    """Return a group of its own, or note that it is none of this schema."""
    if isinstance(value, schema):
        return _group(value, key, problems)
    found = type(value).__name__ if is_dataclass(value) else value
    problems.append(
        line(key, found, f"must be of type {schema.__name__}, as speculators.compose gives")
    )
    return value


def _value(
    schema: DictConfig, name: str, value: Any, key: str, hint: Any, problems: list[str]
) -> Any:
    try:
        schema[name] = literal(value)
        taken = schema[name]
    except OmegaConfBaseException:
        wanted = "plain: text, numbers, lists, mappings" if hint is Any else describe(hint)
        problems.append(line(key, value, f"must be {wanted}"))
        return value
    return OmegaConf.to_object(taken) if OmegaConf.is_config(taken) else taken


def _without_null(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def _items(hint: Any) -> Any:
    """Return what a mapping holds; None for anything else."""
    return get_args(hint)[1] if get_origin(hint) is dict else None

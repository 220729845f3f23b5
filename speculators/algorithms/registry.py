"""From the name of an algorithm to its drafter class."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from speculators.algorithms.base import Drafter
from speculators.algorithms.layouts import Layout
from speculators.config.discovery import algorithms
from speculators.config.wording import did_you_mean
from speculators.errors import ConfigError


def drafter_class(name: str) -> type[Drafter[Any]]:
    """Return the drafter of an algorithm: of this project, or of an installed package.

    Algorithms are found as `speculators.config.discovery` says; their `model.py` is imported only
    when it is asked for.

    Raises:
        ConfigError: no such algorithm, or its `model.py` does not hold exactly one drafter of that
            name.
    """
    known = algorithms()
    if name not in known:
        raise ConfigError(
            f"speculator={name}: no such algorithm;{did_you_mean(name, known)} known: "
            f"{', '.join(known)}"
        )
    module = importlib.import_module(f"{known[name].package}.model")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Drafter)
        and getattr(value, "speculators_model_type", None) == name
    ]
    if len(found) != 1:
        raise ConfigError(
            f"speculator={name}: {module.__name__} must define one Drafter with "
            f"speculators_model_type {name!r}, it defines {len(found)}"
        )
    return found[0]


def layouts() -> dict[str, Layout[Any]]:
    """Return the layouts of other writers, by name: those of every algorithm's `layouts.py`.

    Raises:
        ConfigError: two of them have one name.
    """
    found: dict[str, Layout[Any]] = {}
    for algorithm in algorithms().values():
        name = f"{algorithm.package}.layouts"
        if importlib.util.find_spec(name) is None:
            continue
        for value in vars(importlib.import_module(name)).values():
            own = isinstance(value, type) and issubclass(value, Layout)
            if not own or value.__module__ != name:
                continue
            if value.name in found:
                raise ConfigError(f"convert.to={value.name}: two algorithms have such a layout")
            found[value.name] = value()
    return found

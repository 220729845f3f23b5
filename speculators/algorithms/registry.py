"""From the name of an algorithm to its drafter class."""

from __future__ import annotations

import importlib
from typing import Any

from speculators.algorithms.base import Drafter
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

"""Checks a whole command line before anything is written, every run of a multirun included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from omegaconf import DictConfig, OmegaConf

from speculators.config.composition import Composition, Request, compose_untyped
from speculators.config.schema import Config
from speculators.config.wording import field_doc
from speculators.errors import ConfigError


def check(request: Request, *, needs: Sequence[str] = (), values: bool = True) -> None:
    """Check everything a command line asks for.

    Of a multirun, each value of each axis is checked together with the first values of the others.

    Args:
        request: what was asked for.
        needs: dotted keys without which the command cannot run; of `a|b|c`, one is enough.
        values: also check ranges and combinations, not only choices, keys and types.

    Raises:
        ConfigError: every problem at once.
    """
    first = compose_untyped(request)
    problems: list[str] = []
    for composition in (first, *_variations(request, first)):
        if values:
            composition.typed()
        problems.extend(composition.problems)
    if values and first.config is not None:
        problems.extend(_needed(first.config, needs))
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _variations(request: Request, first: Composition) -> Iterator[Composition]:
    for key, values in first.axes.items():
        others = [text for text in request.overrides if text.partition("=")[0] != key]
        for value in values:
            yield compose_untyped(replace(request, overrides=(*others, f"{key}={value}")))


def _needed(config: DictConfig, needs: Sequence[str]) -> Iterator[str]:
    for need in needs:
        keys = need.split("|")
        if all(OmegaConf.select(config, key) in (None, {}) for key in keys):
            group, _, name = keys[0].rpartition(".")
            schema = (OmegaConf.get_type(config[group]) if group else None) or Config
            others = f" (or {', '.join(keys[1:])})" if keys[1:] else ""
            yield f"{keys[0]}=null: a value is needed{others}: {field_doc(schema, name)}"

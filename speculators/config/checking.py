"""Checks a whole command line before anything is written, every run of a multirun included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from omegaconf import DictConfig, OmegaConf

from speculators.config.composition import Composition, Request, compose_untyped
from speculators.config.schema import Config, HiddenStatesMode
from speculators.config.wording import field_doc
from speculators.errors import ConfigError


def check(
    request: Request, *, needs: Sequence[str] = (), values: bool = True, decodes: bool = False
) -> None:
    """Check everything a command line asks for.

    Of a multirun, each value of each axis is checked together with the first values of the others.

    Args:
        request: what was asked for.
        needs: dotted keys without which the command cannot run; of `a|b|c`, one is enough.
        values: also check ranges and combinations, not only choices, keys and types.
        decodes: the runs decode at their end, where the configuration allows it.

    Raises:
        ConfigError: every problem at once.
    """
    first = compose_untyped(request)
    config, problems = first.typed() if values else None, list(first.problems)
    for composition in _variations(request, first):
        if values:
            composition.typed()
        problems.extend(composition.problems)
    if config is not None and first.config is not None and first.multirun:
        problems.extend(sweep_problems(config, first.config.hydra.sweeper, decodes=decodes))
    if values and first.config is not None:
        problems.extend(find_missing(first.config, needs))
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _variations(request: Request, first: Composition) -> Iterator[Composition]:
    for key, values in first.axes.items():
        others = [text for text in request.overrides if text.partition("=")[0] != key]
        for value in values:
            yield compose_untyped(replace(request, overrides=(*others, f"{key}={value}")))


def sweep_problems(config: Config, sweeper: Any, *, decodes: bool) -> Iterator[str]:
    """Yield what would let a sweep search for nothing, or for the opposite.

    Args:
        config: of its first run.
        sweeper: Hydra's node.
        decodes: the runs decode at their end, where the configuration allows it.
    """
    objective = config.sweep.compared_by
    apart = config.hidden_states.mode is not HiddenStatesMode.embedded
    if decodes and objective.decoded and (apart or not config.evaluation.enabled):
        reason = "hidden states from elsewhere" if apart else "evaluation.enabled=false"
        yield (
            f"sweep.objective={objective.name}: nothing is decoded with {reason}: compare by "
            "validation, sweep.objective=best_value"
        )
    direction = sweeper.get("direction")
    if direction is None:
        return
    wanted = "maximize" if objective.maximised(config.training.best_metric.name) else "minimize"
    given = getattr(direction, "name", direction)
    if given != wanted:
        yield (
            f"hydra.sweeper.direction={given}: {objective.name} is to be {wanted}d: give "
            f"hydra.sweeper.direction={wanted}"
        )


def find_missing(config: DictConfig | Config, needs: Sequence[str]) -> Iterator[str]:
    """Yield what a command cannot do without and was not given.

    Args:
        config: composed, typed or not yet.
        needs: dotted keys; of `a|b|c`, one is enough.
    """
    for need in needs:
        keys = need.split("|")
        if all(_select(config, key) in (None, {}) for key in keys):
            group, _, name = keys[0].rpartition(".")
            schema = _schema(config, group) if group else Config
            others = f" (or {', '.join(keys[1:])})" if keys[1:] else ""
            yield f"{keys[0]}=null: a value is needed{others}: {field_doc(schema, name)}"


def _select(config: DictConfig | Config, key: str) -> Any:
    if isinstance(config, Config):
        return reduce(getattr, key.split("."), config)
    return OmegaConf.select(config, key)


def _schema(config: DictConfig | Config, group: str) -> Any:
    if isinstance(config, Config):
        return type(_select(config, group))
    return OmegaConf.get_type(config[group]) or Config

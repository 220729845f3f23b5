"""Composes configurations with Hydra, and reports everything that is wrong with the overrides.

Hydra stops at the first bad override. Here the choices of groups are composed first; then every
other override is applied by itself, by Hydra's own code, so that each can fail by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from speculators.config.explanation import (
    explain_choice,
    explain_key,
    explain_sweep,
    explain_syntax,
    explain_value,
)
from speculators.config.folder import config_folder
from speculators.config.loading import one_line, to_config
from speculators.config.registry import register
from speculators.config.schema import Config
from speculators.errors import ConfigError

VERSION_BASE = "1.3"
"""Behaviour of Hydra this project is written for."""

_SEARCH_PATH = "hydra.searchpath"


@dataclass(frozen=True)
class Request:
    """What somebody asked to be composed.

    Attributes:
        config_name: primary config: a command, or a file of `config_dir`.
        overrides: `key=value` lines in Hydra's grammar.
        config_dir: extra folder of configs, searched after `conf/`.
        multirun: several runs are wanted; a config can want that too.
    """

    config_name: str
    overrides: tuple[str, ...] = ()
    config_dir: str | None = None
    multirun: bool = False


@dataclass
class Composition:
    """How far composing came.

    Attributes:
        config: with Hydra's own node; None when nothing could be composed.
        problems: one line per override that could not be used.
        axes: values of each key that a multirun varies; empty for a single run.
    """

    config: DictConfig | None = None
    problems: list[str] = field(default_factory=list)
    axes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def multirun(self) -> bool:
        """Whether several runs are wanted."""
        return self.config is not None and self.config.hydra.mode is RunMode.MULTIRUN

    def typed(self) -> Config | None:
        """Convert and validate; problems found on the way are appended."""
        if self.config is None:
            return None
        try:
            return to_config(self.config)
        except ConfigError as error:
            self.problems.extend(error.problems)
            return None


def compose(command: str = "train", overrides: Sequence[str] = ()) -> Config:
    """Compose and validate a configuration in Python, as the command line does.

    Args:
        command: `train`, `prepare` or `evaluate`.
        overrides: `key=value` lines, for example `["verifier=tiny", "speculator.num_layers=1"]`.

    Raises:
        ConfigError: every problem at once.
    """
    composition = compose_untyped(Request(command, tuple(overrides)))
    config = composition.typed()
    if composition.problems or config is None:
        raise ConfigError(composition.problems)
    return config


def compose_untyped(request: Request) -> Composition:
    """Compose as far as possible, naming every override that cannot be used.

    Of a key with several values the first is taken.
    """
    if request.config_dir is not None and not Path(request.config_dir).is_dir():
        return Composition(problems=[f"--config-dir {request.config_dir}: no such folder"])
    with _opened(request) as loader:
        return _Composer(loader, request).run()


@contextmanager
def _opened(request: Request) -> Iterator[ConfigLoaderImpl]:
    """Open Hydra on `conf/` and the extra folder, as its own command line does."""
    register()
    with hydra.initialize_config_dir(str(config_folder()), request.config_name, VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        if request.config_dir is not None:
            extra = f"file://{Path(request.config_dir).absolute()}"
            sources = loader.get_search_path()
            sources.prepend("command-line", extra, SearchPathQuery("schema", None))
            loader.repository.initialize_sources(sources)
        yield loader


class _Composer:
    """One composition, while Hydra is open."""

    def __init__(self, loader: ConfigLoaderImpl, request: Request) -> None:
        self.loader = loader
        self.request = request
        self.parser = OverridesParser.create(config_loader=loader)
        self.result = Composition()

    def run(self) -> Composition:
        """Compose the choices, then apply the values."""
        overrides = self._parse(self.request.overrides)
        sweeps = [override for override in overrides if override.is_sweep_override()]
        choices, values = self._sort(o for o in overrides if not o.is_sweep_override())
        swept_choices, swept_values = self._sort(map(self._first, sweeps))
        config = self._compose([*choices, *swept_choices])
        if config is None:
            return self.result
        self._apply(values, config)
        if self.request.multirun:
            config.hydra.mode = RunMode.MULTIRUN
        if config.hydra.mode is RunMode.MULTIRUN:
            self._apply(swept_values, config)
            self._vary(sweeps, config)
        else:
            self.result.problems.extend(map(explain_sweep, sweeps))
        self.result.config = config
        return self.result

    def _parse(self, texts: Sequence[str]) -> list[Override]:
        parsed = []
        for text in texts:
            try:
                parsed.append(self.parser.parse_override(text))
            except HydraException as error:
                self.result.problems.append(explain_syntax(text, error))
        return parsed

    def _sort(self, overrides: Iterable[Override]) -> tuple[list[Override], list[Override]]:
        """Separate choices of groups, those that exist, from values."""
        choices, values = [], []
        for override in overrides:
            options = self._options(override.key_or_group)
            if override.key_or_group == _SEARCH_PATH:
                choices.append(override)
            elif not options or isinstance(override.value(), dict):
                values.append(override)
            elif problem := explain_choice(override, options):
                self.result.problems.append(problem)
            else:
                choices.append(override)
        return choices, values

    def _options(self, group: str) -> list[str]:
        """Return what a group offers; nothing for a key that is no group."""
        more = [text for text in self.request.overrides if text.startswith(_SEARCH_PATH)]
        if more:
            return self.loader.get_group_options(group, overrides=more)
        return self.loader.repository.get_group_options(group)  # the same, without a deep copy

    def _compose(self, choices: Sequence[Override]) -> DictConfig | None:
        texts = [choice.input_line or "" for choice in choices]
        try:
            return hydra.compose(self.request.config_name, texts, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            self.result.problems.append(one_line(error))
            return None

    def _apply(self, values: Iterable[Override], config: DictConfig) -> None:
        for override in values:
            if problem := explain_key(override, config):
                self.result.problems.append(problem)
                continue
            try:
                ConfigLoaderImpl._apply_overrides_to_config([override], config)
            except (HydraException, OmegaConfBaseException) as error:
                self.result.problems.append(explain_value(override, error, config))

    def _vary(self, sweeps: Sequence[Override], config: DictConfig) -> None:
        """Note what a multirun varies: on the command line, else in the sweeper's parameters."""
        given = {text.partition("=")[0]: text for text in self.request.overrides}
        if "output_dir" in given:
            self.result.problems.append(
                f"{given['output_dir']}: every run of a multirun has its own folder: "
                "give hydra.sweep.dir=FOLDER"
            )
        params = config.hydra.sweeper.get("params") or {}
        texts = [f"{key}={value}" for key, value in params.items() if key not in given]
        for axis in [*self._parse(texts), *sweeps]:
            self.result.axes[axis.get_key_element()] = _values(axis)

    def _first(self, sweep: Override) -> Override:
        return self.parser.parse_override(f"{sweep.get_key_element()}={_values(sweep)[0]}")


def _values(override: Override) -> list[str]:
    """Return the values of a sweep, or the ends of an interval, as they are written."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    if override.is_discrete_sweep():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]

"""Which schemas exist. Answers without importing Hydra or torch.

Most groups have one schema, named by the type of its field in `Config`. `speculator` and
`optimizer` have one per choice. Algorithms are found, not listed: every folder of
`speculators/algorithms` with a `config.py`, and every entry point of the group
`speculators.algorithms`.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from speculators.config.schema import AdamWConfig, MuonConfig, SpeculatorConfig
from speculators.errors import ConfigError

ENTRY_POINT_GROUP = "speculators.algorithms"
"""Outside packages name their algorithms here: `foo = "foo_package"`."""

_HOME = "speculators.algorithms"


@dataclass(frozen=True)
class Algorithm:
    """A drafting algorithm as far as the configuration knows it; nothing here imports torch.

    Attributes:
        name: the choice, `speculator=<name>`.
        package: dotted package that holds `config.py` and `model.py`.
        schema: its subclass of `SpeculatorConfig`.
    """

    name: str
    package: str
    schema: type[SpeculatorConfig]

    @property
    def built_in(self) -> bool:
        """Whether it lives in this project."""
        return self.package.startswith(f"{_HOME}.")


@cache
def algorithms() -> dict[str, Algorithm]:
    """Return every algorithm that can be chosen, by name, in alphabetical order.

    Raises:
        ConfigError: a package whose `config.py` cannot be used, by name.
    """
    found = [_read(name, f"{_HOME}.{name}") for name in _folders()]
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        found.append(_read_entry(entry))
    by_name: dict[str, Algorithm] = {}
    for algorithm in sorted(found, key=lambda found: found.name):
        other = by_name.setdefault(algorithm.name, algorithm)
        if other is not algorithm:
            raise ConfigError(
                f"speculator={algorithm.name}: two packages offer it, {other.package} and "
                f"{algorithm.package}: uninstall one"
            )
    return by_name


def variants() -> dict[str, dict[str, type]]:
    """Return the schemas of the groups that have one per choice: group -> name -> schema."""
    return {
        "speculator": {name: found.schema for name, found in algorithms().items()},
        "optimizer": {"adamw": AdamWConfig, "muon": MuonConfig},
    }


def _folders() -> list[str]:
    home = importlib.import_module(_HOME)
    names = [module.name for module in pkgutil.iter_modules(home.__path__) if module.ispkg]
    return [name for name in names if importlib.util.find_spec(f"{_HOME}.{name}.config")]


def _read_entry(entry: EntryPoint) -> Algorithm:
    try:
        return _read(entry.name, entry.value)
    except ImportError as error:
        raise ConfigError(
            f"speculator={entry.name}: the installed package {entry.value} cannot be imported "
            f"({error}): repair or uninstall it"
        ) from error


def _read(name: str, package: str) -> Algorithm:
    module = importlib.import_module(f"{package}.config")
    schemas = _schemas_of(module)
    if len(schemas) != 1:
        raise ConfigError(
            f"speculator={name}: {module.__name__} must define one subclass of SpeculatorConfig, "
            f"it defines {len(schemas)}"
        )
    if schemas[0].name != name:
        raise ConfigError(
            f"speculator={name}: {schemas[0].__name__}.name is {schemas[0].name!r}: it must be "
            f"{name!r}"
        )
    return Algorithm(name, package, schemas[0])


def _schemas_of(module: ModuleType) -> list[type[SpeculatorConfig]]:
    return [
        found
        for found in vars(module).values()
        if isinstance(found, type)
        and issubclass(found, SpeculatorConfig)
        and found.__module__ == module.__name__
    ]

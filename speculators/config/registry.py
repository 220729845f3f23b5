"""Makes the schemas, and how the runs of a multirun are called, known to Hydra.

A schema with several choices is registered as `schema/<group>/<choice>`, and the YAML file of a
choice pulls it in with `- /schema/<group>/<choice>@_here_`. So the menus show only what can be
chosen.
"""

from __future__ import annotations

import importlib.util
from functools import cache

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from speculators.config.discovery import algorithms, variants
from speculators.config.identity import result_settings, run_name
from speculators.config.schema import Config


@cache
def register() -> None:
    """Make the schemas, and the YAML files of outside algorithms, known to Hydra."""
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config, provider="speculators")
    for group, schemas in variants().items():
        for name, schema in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=schema, provider="speculators")
    Plugins.instance().register(AlgorithmSearchPath)
    OmegaConf.register_new_resolver("run_name", _name_of_run, replace=True)


def _name_of_run(*, _root_: DictConfig) -> str:
    """`${run_name:}`: the folder of one run of a multirun (conf/directories.yaml)."""
    overrides = [str(text) for text in _root_.hydra.overrides.task]
    return run_name(overrides, result_settings(_root_))


class AlgorithmSearchPath(SearchPathPlugin):
    """Adds `<package>/conf` of outside algorithms, where `speculator/<name>.yaml` stands."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders that exist."""
        for algorithm in algorithms().values():
            conf = f"{algorithm.package}.conf"
            if not algorithm.built_in and importlib.util.find_spec(conf) is not None:
                search_path.append(provider=algorithm.package, path=f"pkg://{conf}")

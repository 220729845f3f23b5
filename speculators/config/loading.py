"""Between untyped YAML and typed configurations, in both directions.

Types do not survive YAML. They are rebuilt from the `name` of each group that has one schema per
choice, so a run can be repeated from its own saved configuration.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from speculators.config.discovery import variants
from speculators.config.schema import Config
from speculators.config.validation import find_problems
from speculators.config.wording import did_you_mean, field_doc, literal
from speculators.errors import ConfigError

_HEADER = """\
# The whole configuration of one run, every value written out.
# Repeat it:   python train.py --config-dir THIS_FOLDER --config-name {stem} output_dir=NEW_FOLDER
# In Python:   speculators.config.loading.load_run_config("THIS_FOLDER/{stem}.yaml")
"""

_MAYBE_FILES = (
    ("verifier", "name_or_path"),
    ("verifier", "template"),
    ("speculator", "from_pretrained"),
    ("speculator", "pretrained_verifier"),
    ("data", "path"),
    ("data", "validation_path"),
    ("data", "prompt_sets"),
    ("evaluation", "prompts"),
)
_WORDS = ("tiny", "checkpoint", "auto", "plain")


def to_config(composed: DictConfig, output_dir: str | None = None) -> Config:
    """Turn a composed configuration into typed objects, and validate it.

    Args:
        composed: a configuration typed by the schemas; Hydra's own node is left aside.
        output_dir: the run directory, where Hydra decided it. Paths become absolute.

    Raises:
        ConfigError: missing values, wrong types and failed checks, all at once.
    """
    problems: list[str] = []
    parts: dict[str, Any] = {}
    for field in fields(Config):
        try:
            parts[field.name] = _convert(composed, field.name)
        except MissingMandatoryValue:
            problems.extend(_missing(composed, field.name))
        except OmegaConfBaseException as error:
            problems.append(one_line(error))
    if len(parts) == len(fields(Config)):
        found = find_problems(config := Config(**parts))
    else:
        groups = {name: part for name, part in parts.items() if hasattr(part, "problems")}
        found = (text for name, part in groups.items() for text in find_problems(part, name))
    problems.extend(found)
    if problems:
        raise ConfigError(problems)
    config.output_dir = output_dir or config.output_dir
    _make_absolute(config)
    return config


def load_run_config(path: str | Path) -> Config:
    """Read a saved configuration, typed and validated.

    Args:
        path: a file written by `run_file` or `to_yaml`.

    Raises:
        ConfigError: not such a file, or its content does not stand.
    """
    try:
        saved = OmegaConf.load(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # the YAML parser's errors have no common public base
        raise ConfigError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(saved, DictConfig):
        raise ConfigError(f"{path}: not a saved configuration")
    saved.pop("defaults", None)
    try:
        return to_config(_typed(saved))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {one_line(error)}") from error
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from error


def to_yaml(config: Config) -> str:
    """Write a configuration as YAML, every value resolved, in the order of the schema."""
    return OmegaConf.to_yaml(OmegaConf.create(literal(asdict(config))))


def run_file(config: Config, stem: str = "resolved") -> str:
    """Write a configuration so that Hydra itself can start from the file.

    Args:
        config: what a run was started with.
        stem: name of the file without `.yaml`, for the instructions in its header.
    """
    schemas = [f"/schema/{group}/{getattr(config, group).name}@{group}" for group in variants()]
    defaults = ["/schema/config@_here_", *schemas, "/directories", "_self_"]
    lines = "".join(f"- {entry}\n" for entry in defaults)
    return f"{_HEADER.format(stem=stem)}defaults:\n{lines}{to_yaml(config)}"


def one_line(error: BaseException) -> str:
    """Fold a message of Hydra or OmegaConf into one line that opens with the key, when known."""
    text = str(error).partition("Config search path:")[0]
    lines = [part.strip() for part in text.splitlines() if part.strip()]
    keys = [part.removeprefix("full_key:").strip() for part in lines if "full_key:" in part]
    noise = ("full_key:", "object_type=", "reference_type=")
    message = " ".join(part for part in lines if not part.startswith(noise))
    return ": ".join([*(key for key in keys[:1] if key), message])


def _make_absolute(config: Config) -> None:
    """Let paths mean the same from any working directory: the configuration will be saved.

    Names that are no file here (hub ids, patterns, what is missing) stay as they were typed.
    """
    config.output_dir = os.path.abspath(config.output_dir)
    config.cache_dir = os.path.abspath(config.cache_dir)
    store = config.hidden_states.store_path
    if store is not None:
        config.hidden_states.store_path = os.path.abspath(os.path.expanduser(store))
    for group, name in _MAYBE_FILES:
        part = getattr(config, group)
        setattr(part, name, _absolute(getattr(part, name)))
    for source in config.data.sources.values():
        source.path = _absolute(source.path)


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(item) for item in value]
    if value is None or value in _WORDS or not os.path.exists(value):
        return value
    return os.path.abspath(value)


def _convert(composed: DictConfig, name: str) -> Any:
    value = composed[name]
    return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value


def _missing(composed: DictConfig, name: str) -> Iterator[str]:
    """Explain each value that has to be given, below `name` or `name` itself."""
    node = None if OmegaConf.is_missing(composed, name) else composed[name]
    below = sorted(_unset(OmegaConf.to_container(node), name)) if OmegaConf.is_config(node) else []
    for key in below or [name]:
        parent, _, last = key.rpartition(".")
        schema = OmegaConf.get_type(OmegaConf.select(composed, parent) if parent else composed)
        doc = field_doc(schema, last) if schema else ""
        yield f"{key}=???: a value is needed" + (f": {doc}" if doc else "")


def _unset(value: Any, path: str) -> Iterator[str]:
    """Yield the dotted paths of values that were never given; copies of them do not count."""
    if value == MISSING:
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _unset(item, f"{path}.{key}")


def _typed(saved: DictConfig) -> DictConfig:
    """Merge saved values into their schemas.

    Raises:
        ConfigError: a group with a name nobody knows.
        OmegaConfBaseException: an unknown key or a wrong type.
    """
    typed = OmegaConf.structured(Config)
    problems = []
    for group, schemas in variants().items():
        name = OmegaConf.select(saved, f"{group}.name")
        if name not in schemas:
            known = f"one of {', '.join(schemas)}{did_you_mean(str(name), schemas)}"
            problems.append(f"{group}.name={name}: must be {known}")
        else:
            typed[group] = OmegaConf.structured(schemas[name])
    if problems:
        raise ConfigError(problems)
    return OmegaConf.merge(typed, saved)  # type: ignore[return-value]

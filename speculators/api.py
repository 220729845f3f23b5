"""The stages of the command line, from Python, with typed configurations.

    import speculators

    config = speculators.compose("verifier=tiny", "speculator=dflash", "training.max_steps=100")
    result = speculators.train(config)
    print(result["acceptance_length"], result["checkpoint"])

A configuration is composed from the same files as on the command line, is validated at once and
again when it is used, and is a plain dataclass. Every stage writes what the command writes, shows
the same progress, and raises `SpeculatorsError` where the command prints an error line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speculators.cli.commands import COMMANDS
from speculators.config.checking import find_missing
from speculators.config.composition import compose as compose_command
from speculators.config.loading import load_run_config
from speculators.config.retyping import retyped
from speculators.config.schema import Config
from speculators.config.validation import find_problems
from speculators.config.wording import did_you_mean, quoted
from speculators.errors import ConfigError

if TYPE_CHECKING:
    from speculators.algorithms.base import Drafter
    from speculators.data.prepared import PreparedData
    from speculators.launch.verifier_stage import Verifier


def compose(
    *overrides: str, command: str = "train", output_dir: str | Path | None = None
) -> Config:
    """Compose a configuration as `speculators COMMAND OVERRIDE ...` does.

    Args:
        overrides: `key=value` each, for example `"verifier=tiny"`, `"speculator.num_layers=1"`.
        command: whose primary configuration to start from.
        output_dir: run directory; None gives it a name of its own under `outputs/`.

    Returns:
        The validated configuration, a tree of dataclasses: change it with `dataclasses.replace`.

    Raises:
        ConfigError: every problem at once.
    """
    if command not in COMMANDS:
        meant = did_you_mean(command, COMMANDS)
        raise ConfigError(
            f"command={command}: no such command:{meant} there are {', '.join(COMMANDS)}"
        )
    folder = [] if output_dir is None else [f"output_dir={quoted(str(output_dir))}"]
    return compose_command(command, [*overrides, *folder])


def load_config(path: str | Path) -> Config:
    """Read the configuration of a run.

    Args:
        path: its folder, its `resolved.yaml`, or a checkpoint or its `run.yaml`.

    Raises:
        ConfigError: there is none, or it does not stand.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder; give a run's folder or a checkpoint")
    if path.is_dir():
        names = ("resolved.yaml", "run.yaml")
        found = [path / name for name in names if (path / name).exists()]
        if not found:
            raise ConfigError(f"{path}: holds neither {' nor '.join(names)}; give a run's folder")
        path = found[0]
    return load_run_config(path)


def prepare(config: Config) -> PreparedData:
    """Prepare the data, or find it as it was prepared before: `speculators prepare`.

    Returns:
        The samples of both splits, their report and their folder.

    Raises:
        DataError: rows that cannot be used, by file and line.
    """
    from speculators.launch.data_stage import prepare_data
    from speculators.launch.verifier_stage import Verifier

    config = _check(config, "prepare")
    return prepare_data(config, Verifier(config))


def plan_run(config: Config) -> dict[str, Any]:
    """Say what a run needs, before it starts: `speculators plan`.

    Returns:
        What `plan.json` holds: bytes by part, largest sizes, steps, hours.
    """
    return _run("plan", config)


def extract(config: Config) -> dict[str, Any]:
    """Fill the store of hidden states from running servers: `speculators extract`.

    Raises:
        HiddenStateError: servers that cannot be reached, or states that cannot be trusted.
    """
    return _run("extract", config)


def train(config: Config) -> dict[str, Any]:
    """Do what is still missing, then train, evaluate and report: `speculators train`.

    An `output_dir` that holds a run is gone on with. `launcher` is obeyed.

    Returns:
        What `result.json` holds: acceptance length with its interval, steps, checkpoint, ...
    """
    return _run("train", config)


def evaluate(config: Config) -> dict[str, Any]:
    """Decode prompts with a checkpoint, and without: `speculators evaluate`.

    Args:
        config: composed with `command="evaluate"` and `"checkpoint=DIR"`.

    Returns:
        What `evaluation.json` holds.
    """
    return _run("evaluate", config)


def examine(config: Config) -> dict[str, Any]:
    """Prove that a checkpoint is served as it was trained, or explain a run: `speculators doctor`.

    Args:
        config: composed with `command="doctor"` and `"checkpoint=DIR"` or `"run=DIR"`.

    Returns:
        What `parity.json` or `diagnosis.json` holds.

    Raises:
        CheckpointError: something differs in the checkpoint; the first stage that does.
    """
    return _run("doctor", config)


def convert(config: Config) -> dict[str, Any]:
    """Write a checkpoint in another writer's layout: `speculators convert`.

    Args:
        config: composed with `command="convert"` and `"checkpoint=DIR"`.

    Raises:
        CheckpointError: anything in the checkpoint that has no equal there, by name.
    """
    return _run("convert", config)


def load_verifier(config: Config) -> Verifier:
    """Open the verifier of a configuration: sizes and tokenizer at once, weights on first use."""
    from speculators.launch.verifier_stage import Verifier

    return Verifier(_check(config))


def load_drafter(checkpoint: str | Path, verifier: Verifier) -> Drafter[Any]:
    """Read a drafter back from a checkpoint, on the verifier's device, ready to draft.

    Raises:
        CheckpointError: not a checkpoint, or one of another verifier.
    """
    from speculators.conversion.layout import read_model

    drafter = read_model(Path(checkpoint), spec=verifier.spec, tables=verifier.tables())
    return drafter.to(verifier.device).eval()


def _run(command: str, config: Config) -> dict[str, Any]:
    result = COMMANDS[command].run(_check(config, command))
    return dict(result) if isinstance(result, Mapping) else {}


def _check(config: Config, command: str | None = None) -> Config:
    """Check again, before anything is written: it may have been changed since it was composed.

    Returns:
        A copy whose values have the types of their fields.
    """
    if not isinstance(config, Config):
        raise ConfigError(
            f"config is a {type(config).__name__}: give a configuration, as "
            'speculators.compose("verifier=tiny") returns it'
        )
    config = retyped(config)
    needs = COMMANDS[command].needs if command else ()
    if problems := [*find_problems(config), *find_missing(config, needs)]:
        raise ConfigError(problems)
    return config

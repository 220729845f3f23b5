"""A command as a Hydra application: checks the command line, composes, runs the stage."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode

from speculators.cli.commands import Command
from speculators.cli.sweep import StopSweep, SweepFolder, attempt, conclude_sweep
from speculators.config.checking import check
from speculators.config.composition import VERSION_BASE, Request
from speculators.config.folder import config_folder
from speculators.config.loading import one_line, to_config
from speculators.config.registry import register
from speculators.config.schema import SweepConfig
from speculators.errors import ConfigError, LaunchError, SpeculatorsError, SweepError


@dataclass
class Task:
    """What Hydra calls for each run. Sweep launchers send it to other processes.

    Attributes:
        command: the stage.
        argv: the command line, for the record.
        start: names this start among all starts of a sweep.
        error: what stopped a single run.
        reached: whether Hydra came as far as running it in this process.
    """

    command: Command
    argv: tuple[str, ...]
    start: str = field(default_factory=lambda: uuid.uuid4().hex)
    error: SpeculatorsError | None = None
    reached: bool = False

    def __call__(self, composed: Any) -> Any:
        """Run the stage on a composed configuration and return its objective."""
        self.reached = True
        state = HydraConfig.get()
        folder = state.runtime.output_dir
        if state.mode is RunMode.MULTIRUN:
            objective = SweepConfig(composed.sweep.objective).compared_by.value
            return attempt(
                composed, state, objective, self.start, lambda: self._stage(composed, folder)
            )
        try:
            return self._stage(composed, folder)
        except SpeculatorsError as error:
            _leave_nothing(Path(folder))
            self.error = error
            return None

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Arrive in the process of a launcher, where Hydra knows nothing of us yet."""
        self.__dict__.update(state)
        register()

    def _stage(self, composed: Any, folder: str) -> Any:
        config = to_config(composed, output_dir=folder)
        spread = self.command.spread_module if config.launcher.starts_processes else None
        return importlib.import_module(spread or self.command.module).run(config, self.argv)


def _leave_nothing(run_dir: Path) -> None:
    """Remove the run directory Hydra has made, if the stage wrote nothing into it."""
    with contextlib.suppress(OSError):
        run_dir.rmdir()


def start(command: Command, arguments: Sequence[str], passed_on: Sequence[str] = ()) -> None:
    """Run a command with Hydra's flags and overrides.

    Args:
        command: which.
        arguments: what stands after its name.
        passed_on: `--` and what stands after it, or nothing.

    Raises:
        SpeculatorsError: anything the user can mend; nothing has been written when it is about
            the configuration.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise LaunchError(
            "torchrun: every process it starts would compose a run of its own; type `python "
            "train.py launcher=ddp launcher.num_processes=N` instead (or launcher=fsdp)"
        )
    register()
    _check(command, arguments)
    task = Task(command, ("speculators", command.name, *arguments, *passed_on))
    application = hydra.main(str(config_folder()), command.name, VERSION_BASE)(task)
    SweepFolder.path = None
    with _arguments(arguments), _raised_errors():
        try:
            application()
        except StopSweep as stopped:
            task.error = stopped.error
        except HydraException as error:
            raise ConfigError(one_line(error)) from error
        except Exception as error:
            # In a multirun other processes run the task, so what failed is not known here.
            alone = not get_args(list(arguments)).multirun
            if alone and isinstance(error, OSError) and error.filename and not task.reached:
                raise LaunchError(
                    f"output_dir: {error.filename} cannot be written ({error.strerror}): choose "
                    "another output_dir"
                ) from error
            # A sweeper, or a launcher, that gives up because runs failed: they say why.
            _conclude(task, cause=error)
            raise
    _conclude(task)
    if task.error is not None:
        raise task.error


def _conclude(task: Task, cause: Exception | None = None) -> None:
    """Let a multirun end with its leaderboard; a stop weighs more than runs that failed."""
    try:
        conclude_sweep(task.start)
    except SweepError as error:
        if task.error is None:
            raise error from cause


@contextlib.contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Let Hydra find our arguments where it looks for them."""
    program, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        yield
    finally:
        sys.argv = program


@contextlib.contextmanager
def _raised_errors() -> Iterator[None]:
    """Let Hydra raise: by itself it prints errors in its own way and ends the process."""
    outside = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if outside is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = outside


def _check(command: Command, arguments: Sequence[str]) -> None:
    """Check the command line, unless it only asks Hydra something."""
    flags = get_args(arguments)
    asks_hydra = flags.info or flags.hydra_help or flags.shell_completion
    if asks_hydra or flags.config_path or flags.experimental_rerun:
        return
    request = Request(
        config_name=flags.config_name or command.name,
        overrides=tuple(flags.overrides),
        config_dir=flags.config_dir,
        multirun=flags.multirun,
    )
    check(request, needs=command.needs, values=flags.cfg is None, decodes=command.decodes)

"""The entry point: finds the command, runs it, and turns errors into one line each."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from speculators import __version__
from speculators.cli.commands import COMMANDS
from speculators.errors import ConfigError, SpeculatorsError, SweepError

_INTERRUPTED = 130
_PIPE_CLOSED = 141
_HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Errors a user can mend are printed as `error: ...`, one line per problem. Everything else is a
    bug and keeps its traceback, and so does every error when HYDRA_FULL_ERROR=1 is set outside.

    Args:
        argv: command and overrides; None takes them from the process.
    """
    full_errors = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        _dispatch(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader, head or less, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except SpeculatorsError as error:
        if full_errors:
            raise
        for problem in _lines(error):
            print(f"error: {problem}", file=sys.stderr)
        return error.exit_code
    return 0


def _dispatch(argv: list[str]) -> None:
    name, *arguments = argv or ["--help"]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    arguments, passed_on = arguments[:end], arguments[end:]
    if name == "--version":
        print(__version__)
    elif name in _HELP:
        from speculators.cli.help import overview

        print(overview())
    elif name not in COMMANDS:
        raise ConfigError(_unknown(name))
    elif any(flag in arguments for flag in _HELP):
        from speculators.cli.help import command_help

        print(command_help(COMMANDS[name]))
    else:
        from speculators.cli.application import start

        if passed_on and not COMMANDS[name].passes_on:
            raise ConfigError(f"--: {name} starts no other program; leave out `--`")
        start(COMMANDS[name], arguments, passed_on)


def _unknown(name: str) -> str:
    from speculators.config.wording import did_you_mean

    if "=" in name or name.startswith("-"):
        return f"{name}: name a command first, for example speculators train {name}"
    return f"{name}: no such command:{did_you_mean(name, COMMANDS)} there are {', '.join(COMMANDS)}"


def _lines(error: SpeculatorsError) -> Sequence[str]:
    return error.problems if isinstance(error, ConfigError | SweepError) else (str(error),)

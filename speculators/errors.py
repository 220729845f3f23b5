"""Errors meant for people: one line that says what, got, allowed, and what to do.

The command line prints the message of a `SpeculatorsError` without a traceback and exits with
its `exit_code`. Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class SpeculatorsError(Exception):
    """Base of every error a user can cause or mend."""

    exit_code = 1


class ConfigError(SpeculatorsError):
    """A configuration that cannot run. Holds every problem found, not only the first.

    Args:
        problems: one line each, opening with the dotted path of the offending key.
    """

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(SpeculatorsError):
    """Conversations, prompt files or prepared data that cannot be used (file:line where known)."""

    exit_code = 3


class HiddenStateError(SpeculatorsError):
    """Hidden states that are missing, malformed or of another verifier."""

    exit_code = 4


class HiddenStateOutageError(HiddenStateError):
    """The source ran dry in mid-run through no fault of the data: save a checkpoint and stop.

    The same command, given when the servers are back, goes on from there.
    """


class CheckpointError(SpeculatorsError):
    """A checkpoint that is incomplete, damaged or made for something else."""

    exit_code = 5


class SweepError(SpeculatorsError):
    """Some runs of a sweep failed; the others have finished.

    Args:
        problems: one line per run that failed: its name and why.
    """

    exit_code = 7

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class LaunchError(SpeculatorsError):
    """Processes, devices or servers that could not be started."""

    exit_code = 6

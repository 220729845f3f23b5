"""Why one attempt to get the states of one sample failed, and how often to try again.

These never leave the package: a sample whose attempts are used up is left out and counted, and
what no further attempt can mend is a `HiddenStateError` at once.
"""

from __future__ import annotations

from speculators.config.schema.hidden_states import FetchConfig
from speculators.errors import HiddenStateError


class AttemptError(Exception):
    """One attempt failed.

    Args:
        reason: what happened, for people.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def further_attempts(self, settings: FetchConfig) -> int:
        """Return how often a sample may fail in this way and be tried again."""
        return settings.retries


class ServerTroubleError(AttemptError):
    """No answer, half an answer, or 5xx: the server may be down, or this sample may break it."""


class BusyError(AttemptError):
    """The server asks to come again later; never the sample's fault.

    Args:
        reason: what happened.
        retry_after: seconds the server asks to wait.
    """

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class RejectedError(AttemptError):
    """The server refuses this sample; it would refuse it again."""

    def further_attempts(self, settings: FetchConfig) -> int:
        """No further attempt."""
        return 0


class ForbiddenError(RejectedError):
    """The server wants to know who asks; every request would be refused."""


class ReplacedError(AttemptError):
    """Another server answers where the proven one did.

    Args:
        error: what was found.
    """

    def __init__(self, error: HiddenStateError) -> None:
        super().__init__(str(error))
        self.error = error


class NoFileError(AttemptError):
    """An answer, but no file: the server's writer failed, or its folder is not this one."""


class StuckLockError(AttemptError):
    """The server still held the file's lock at the deadline; it may yet write the file."""

    def further_attempts(self, settings: FetchConfig) -> int:
        """One further attempt: each costs the whole deadline."""
        return min(1, settings.retries)


class BadStatesError(AttemptError):
    """States that must not be trained on: other tokens, missing rows, NaN, zeros, odd norms."""

    def further_attempts(self, settings: FetchConfig) -> int:
        """As configured for wrong states."""
        return settings.bad_retries


class OtherStatesError(BadStatesError):
    """States of another width, layer count or number format: those of another server."""

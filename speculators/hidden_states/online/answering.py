"""One question at one server: the request, its answer, and nothing left behind."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from speculators.hidden_states.online.breaker import Endpoint
from speculators.hidden_states.online.client import VllmClient
from speculators.hidden_states.online.completions import Ask
from speculators.hidden_states.online.failures import (
    BadStatesError,
    NoFileError,
    StuckLockError,
)
from speculators.hidden_states.online.files import wait_for_file
from speculators.hidden_states.online.transfer import TransferFolder


@dataclass(frozen=True)
class Written:
    """What a server wrote.

    Attributes:
        token_ids: new tokens, the one it stopped at included.
        finish_reason: `stop` or `length`.
    """

    token_ids: list[int]
    finish_reason: str

    @property
    def num_tokens(self) -> int:
        """Tokens the server wrote."""
        return len(self.token_ids)

    @property
    def num_bytes(self) -> int:
        """No file is kept."""
        return 0


@dataclass(frozen=True)
class Answering:
    """Asks a server; lives on one event loop.

    Attributes:
        client: speaks HTTP.
        folder: where files may lie.
        vocab_size: tokens the verifier has.
        file_timeout_seconds: longest wait for a file that is only removed.
    """

    client: VllmClient
    folder: TransferFolder
    vocab_size: int
    file_timeout_seconds: float

    async def __call__(self, endpoint: Endpoint, request: Ask) -> Written:
        """Make one attempt.

        Raises:
            AttemptError: this attempt failed.
            HiddenStateError: every attempt would.
        """
        written = await self.client.generate(endpoint.url, endpoint.model, request)
        if written.path is not None:
            # A server that extracts does so for every request. The answer is good without the
            # file; one that never comes, or stays locked, is left to the reaper.
            path = self.folder.locate(written.path)
            with contextlib.suppress(NoFileError, StuckLockError):
                (await wait_for_file(path, self.file_timeout_seconds)).remove()
        if not 0 <= min(written.token_ids) <= max(written.token_ids) < self.vocab_size:
            raise BadStatesError(f"answer holds a token outside 0..{self.vocab_size - 1}")
        return Written(written.token_ids, written.finish_reason)

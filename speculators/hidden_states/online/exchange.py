"""One sample at one server: the request, its file, the checks, and nothing left behind."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from speculators.hidden_states.online.breaker import Endpoint
from speculators.hidden_states.online.checks import StatesCheck
from speculators.hidden_states.online.client import VllmClient
from speculators.hidden_states.online.completions import Ask
from speculators.hidden_states.online.failures import NoFileError
from speculators.hidden_states.online.files import HeldFile, wait_for_file
from speculators.hidden_states.online.reading import MAP_BYTES
from speculators.hidden_states.online.transfer import TransferFolder


@dataclass(frozen=True)
class Received:
    """What came back, checked.

    Attributes:
        states: layers ascending, the last stream last.
        next_token: the server's greedy token after the prompt.
    """

    states: Float[Tensor, "token layer hidden"]
    next_token: int

    @property
    def num_tokens(self) -> int:
        """Tokens the server computed."""
        return len(self.states)

    @property
    def num_bytes(self) -> int:
        """Bytes it handed over."""
        return self.states.nbytes


@dataclass(frozen=True)
class Exchange:
    """Asks a server and takes what it wrote; lives on one event loop.

    Attributes:
        client: speaks HTTP.
        folder: where files may lie.
        check: what files must hold.
        readers: threads that read large files; small ones are read on the spot, which is quicker
            than handing them over.
        file_timeout_seconds: longest wait for the file after the answer.
    """

    client: VllmClient
    folder: TransferFolder
    check: StatesCheck
    readers: ThreadPoolExecutor
    file_timeout_seconds: float

    async def __call__(self, endpoint: Endpoint, input_ids: Int[Tensor, "token"]) -> Received:
        """Make one attempt.

        Raises:
            AttemptError: this attempt failed.
            HiddenStateError: every attempt would.
        """
        ask = Ask(input_ids.tolist(), max_new_tokens=1)
        answer = await self.client.generate(endpoint.url, endpoint.model, ask)
        if answer.path is None:
            raise NoFileError(
                "answer names no hidden_states_path: was the server started for extraction "
                "(`speculators serve`)?"
            )
        path = self.folder.locate(answer.path)
        held = await wait_for_file(path, self.file_timeout_seconds)
        try:
            if held.size < MAP_BYTES:
                states = self._read(held, input_ids)
            else:
                loop = asyncio.get_running_loop()
                states = await loop.run_in_executor(self.readers, self._read, held, input_ids)
        finally:
            held.remove()
        return Received(states, answer.token_ids[0])

    def _read(
        self, held: HeldFile, input_ids: Int[Tensor, "token"]
    ) -> Float[Tensor, "token layer hidden"]:
        return self.check(held.load(), input_ids)

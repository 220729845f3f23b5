"""Waiting for the counters of a server to say what an answer cost.

They come a little after the answer, and belong to it alone only while nobody else asks. Both are
told by arithmetic: an answer of n tokens is one token of the prefill and what the verify calls
gave, of which at most K stand behind its end.
"""

from __future__ import annotations

import asyncio
import time

from speculators.errors import LaunchError
from speculators.evaluation.engine_metrics import DraftCounters
from speculators.hidden_states.online.client import VllmClient

_SECONDS = 10.0


async def moved(client: VllmClient, url: str, before: DraftCounters, emitted: int) -> DraftCounters:
    """Return the counters once they have grown by `emitted` tokens of verify calls since `before`.

    Raises:
        LaunchError: they do not.
    """
    deadline = time.monotonic() + _SECONDS
    while True:
        now = DraftCounters.parse(await client.metrics(url))
        gained = now - before
        if gained.emitted >= emitted:
            return now
        if time.monotonic() > deadline:
            raise LaunchError(
                f"answers of {emitted} verified tokens moved the counters by {gained.emitted} "
                "only: something between here and the server keeps its metrics or its "
                "answers; ask the server itself"
            )
        await asyncio.sleep(0.02)


async def settled(
    client: VllmClient, url: str, before: DraftCounters, num_tokens: int, num_draft_tokens: int
) -> DraftCounters:
    """Return the counters once they account for an answer of `num_tokens`, and for no other.

    Raises:
        LaunchError: they account for less, or for more than one answer can have cost.
    """
    now = await moved(client, url, before, num_tokens - 1)
    gained = now - before
    if gained.emitted + 1 > num_tokens + num_draft_tokens:
        raise LaunchError(
            f"an answer of {num_tokens} tokens moved the counters by {gained.emitted}: other "
            "requests are being served at the same time; evaluate a server nobody else uses"
        )
    return now

"""How many tokens to draft: the expected speed-up by number of drafted tokens and batch size.

One cycle drafts K tokens and verifies K + 1. With a_k the share of drafts whose tokens 1..k all
stood, D and V the times of drafting and of one verifier pass over so many tokens per sequence,
for B sequences at once,

    speed-up(B, K) = (1 + a_1 + ... + a_K) * V(B, 1) / (D(B, K) + V(B, K + 1))

It takes a_k for a property of the position alone: exact where tokens are drafted one after another
and prompts are alike, an approximation for blocks, whose slots see each other. Prefill is no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

MODEL = (
    "expected speed-up = (1 + acceptance of positions 1..K, summed) * time of a verifier pass over "
    "one token / (time to draft K + time of a verifier pass over K + 1), per sequence, without "
    "prefill; recommended: the fewest tokens within 1 % of the best"
)
"""Written beside every recommendation."""

_NEAR = 0.01


@dataclass(frozen=True)
class CycleTimes:
    """What the parts of a cycle take at one batch size, in seconds.

    Attributes:
        batch_size: sequences at once.
        plain: a verifier pass over one token of each.
        draft: drafting K tokens for each, K = 1, 2, ...
        verify: a verifier pass over K + 1 tokens of each, K = 1, 2, ...
    """

    batch_size: int
    plain: float
    draft: tuple[float, ...]
    verify: tuple[float, ...]


@dataclass(frozen=True)
class BestK:
    """Expected speed-ups at one batch size.

    Attributes:
        times: what they follow from.
        speedups: of K = 1, 2, ...
    """

    times: CycleTimes
    speedups: tuple[float, ...]

    @property
    def recommended(self) -> int:
        """Tokens to draft: the fewest within 1 % of the best; 0 where drafting does not pay."""
        best = max(self.speedups)
        if best <= 1:
            return 0
        return next(k for k, s in enumerate(self.speedups, 1) if s >= (1 - _NEAR) * best)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        times = self.times
        return {
            "batch_size": times.batch_size,
            "recommended": self.recommended,
            "speedups": list(self.speedups),
            "plain_ms": 1e3 * times.plain,
            "draft_ms": [1e3 * seconds for seconds in times.draft],
            "verify_ms": [1e3 * seconds for seconds in times.verify],
        }


def best_k(per_position: Sequence[float], times: CycleTimes) -> BestK:
    """Return the expected speed-up of every number of drafted tokens.

    Args:
        per_position: share of drafts whose tokens 1..k were all accepted, k = 1, 2, ...
        times: as many of them at least.
    """
    lengths = accumulate(per_position, initial=1.0)
    next(lengths)
    pairs = zip(lengths, times.draft, times.verify, strict=False)
    return BestK(times, tuple(n * times.plain / (draft + verify) for n, draft, verify in pairs))


def served_times(levels: Sequence[Mapping[str, Any]], num_draft_tokens: int) -> list[CycleTimes]:
    """Return cycle times out of a server's latencies; empty without a server that does not draft.

    A plain server's inter-token latency at concurrency c is a pass over c tokens; between and
    beyond the measured ones passes are interpolated by their tokens. What a drafting cycle takes
    more than its verifier pass is drafting; for fewer tokens that is an upper bound.

    Args:
        levels: `served.levels` of `evaluation.json`.
        num_draft_tokens: tokens the server drafts.
    """
    usable = [
        (level["concurrency"], level["plain"]["inter_token_ms"], level["speculative"])
        for level in levels
        if level.get("plain", {}).get("inter_token_ms")
        and level["speculative"]["inter_token_ms"]
    ]  # fmt: skip
    if len(usable) < 2:
        return []
    tokens = np.array([concurrency for concurrency, _, _ in usable], float)
    passes = np.maximum.accumulate([plain["mean"] / 1e3 for _, plain, _ in usable])
    found = []
    for concurrency, _, fast in usable:
        cycle = fast["inter_token_ms"]["mean"] / 1e3 * fast["acceptance_length"]
        counts = concurrency * np.arange(1, num_draft_tokens + 2)
        times = _interpolated(counts, tokens, passes)
        draft = max(cycle - times[-1], 0.0)
        found.append(
            CycleTimes(
                concurrency, times[0], (draft,) * num_draft_tokens, tuple(times[1:].tolist())
            )
        )
    return found


def _interpolated(counts: np.ndarray, tokens: np.ndarray, passes: np.ndarray) -> np.ndarray:
    """Return pass times at `counts` tokens; beyond the last point the last slope goes on."""
    inside = np.interp(counts, tokens, passes)
    slope = (passes[-1] - passes[-2]) / (tokens[-1] - tokens[-2])
    return inside + np.maximum(counts - tokens[-1], 0) * slope

"""Acceptance statistics: one definition for decoding, for the walk and for every algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEFINITION = (
    "acceptance length = 1 + accepted tokens / drafts = tokens per verify call, the verifier's "
    "own bonus token counted; a draft is one verify call with drafted tokens (the prefill is "
    "none), and accepted tokens past the end of an answer count; acceptance rate = accepted / "
    "drafted tokens; per position k = share of drafts whose tokens 1..k were all accepted; "
    "interval: 95 % bootstrap over prompts"
)
"""Written beside every number."""

RESAMPLES = 2000
"""Bootstrap resamples behind every interval."""


@dataclass(frozen=True, eq=False)
class Acceptance:
    """Accepted tokens of many drafts, kept per prompt.

    Definition (that of vLLM): with K tokens per draft and prefix_k the share of drafts whose
    tokens 1..k were all accepted,

        acceptance length  tau = 1 + sum_k prefix_k     (= 1 + accepted / drafts)
        acceptance rate        = sum_k prefix_k / K     (= accepted / drafted tokens)

    A draft of which only the first j tokens could be judged (data that ends inside the block) is
    *censored*: it counts for the positions it was judged at and for no other. Then
    prefix_k = prod_{i<=k} accepted_i / judged_i, accepted_i being the drafts that got to i and
    judged_i those that got to i - 1 and were judged at i (product-limit estimate). Without
    censored drafts the product collapses to the definition above. Leaving censored drafts out
    instead would bias tau down: a long run is the likelier one to meet the end.

    Attributes:
        reached: `[prompt, draft token]`, drafts with at least k accepted tokens.
        at_risk: `[prompt, draft token]`, drafts with k - 1 accepted tokens, judged at k.
        drafts: `[prompt]`, number of drafts.
    """

    reached: NDArray[np.int64]
    at_risk: NDArray[np.int64]
    drafts: NDArray[np.int64]

    @classmethod
    def from_runs(
        cls,
        runs: Sequence[Sequence[int]],
        num_draft_tokens: int,
        judged: Sequence[Sequence[int]] | None = None,
    ) -> Acceptance:
        """Count accepted tokens.

        Args:
            runs: for each prompt, the accepted tokens of its drafts.
            num_draft_tokens: tokens per draft, K.
            judged: how many tokens of each draft could be judged; None: all.
        """
        shape = (len(runs), num_draft_tokens)
        reached, at_risk = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        position = np.arange(1, num_draft_tokens + 1)
        for row, prompt in enumerate(runs):
            run = np.asarray(prompt, np.int64).reshape(-1, 1)
            known = np.full_like(run, num_draft_tokens)
            if judged is not None:
                known = np.asarray(judged[row], np.int64).reshape(-1, 1)
            reached[row] = (run >= position).sum(0)
            at_risk[row] = ((run >= position - 1) & (known >= position)).sum(0)
        return cls(reached, at_risk, np.array([len(prompt) for prompt in runs], np.int64))

    @classmethod
    def merge(cls, parts: Sequence[Acceptance]) -> Acceptance:
        """Put the prompts of several results together; they must draft equally many tokens."""
        return cls(
            np.concatenate([part.reached for part in parts]),
            np.concatenate([part.at_risk for part in parts]),
            np.concatenate([part.drafts for part in parts]),
        )

    def select(self, prompts: Sequence[int]) -> Acceptance:
        """Return the statistics of some prompts, by their places here."""
        rows = np.asarray(prompts, np.int64)
        return Acceptance(self.reached[rows], self.at_risk[rows], self.drafts[rows])

    def num_equal_prompts(self, other: Acceptance) -> int:
        """Return on how many prompts as many drafts stood, position by position, as in `other`."""
        same = (self.drafts == other.drafts) & (self.reached == other.reached).all(-1)
        return int(same.sum())

    @property
    def num_draft_tokens(self) -> int:
        """Tokens per draft, K."""
        return self.reached.shape[1]

    @property
    def num_prompts(self) -> int:
        """Prompts, including those that needed no draft."""
        return self.reached.shape[0]

    @property
    def num_drafts(self) -> int:
        """Verify calls with drafted tokens."""
        return int(self.drafts.sum())

    @property
    def num_accepted_tokens(self) -> int:
        """Drafted tokens that stood."""
        return int(self.reached.sum())

    @property
    def per_position(self) -> list[float]:
        """Share of drafts whose tokens 1..k were all accepted, for k = 1..K."""
        return _prefix(self.reached.sum(0), self.at_risk.sum(0)).tolist()

    @property
    def length(self) -> float:
        """Acceptance length tau; 1.0 when nothing was drafted."""
        return 1.0 + sum(self.per_position)

    @property
    def rate(self) -> float:
        """Accepted share of the drafted tokens."""
        return sum(self.per_position) / self.num_draft_tokens

    def length_interval(self, *, seed: int = 0) -> tuple[float, float] | None:
        """Return the 95 % interval of tau, resampling prompts; None with fewer than two.

        Whole prompts are resampled because drafts of one answer resemble each other.
        """
        rows = self.drafts > 0
        count = int(rows.sum())
        if count < 2:
            return None
        generator = np.random.default_rng(seed)
        times = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
        lengths = 1.0 + _prefix(times @ self.reached[rows], times @ self.at_risk[rows]).sum(-1)
        low, high = np.percentile(lengths, [2.5, 97.5])
        return float(low), float(high)

    def to_dict(self, *, seed: int = 0) -> dict[str, Any]:
        """Return every number with its definition, ready for JSON."""
        interval = self.length_interval(seed=seed)
        return {
            "acceptance_length": self.length,
            "acceptance_length_ci95": None if interval is None else list(interval),
            "acceptance_rate": self.rate,
            "acceptance_per_position": self.per_position,
            "num_draft_tokens": self.num_draft_tokens,
            "num_drafts": self.num_drafts,
            "num_accepted_tokens": self.num_accepted_tokens,
            "definition": DEFINITION,
        }


def _prefix(reached: NDArray[np.int64], at_risk: NDArray[np.int64]) -> NDArray[np.float64]:
    """Product of the conditional acceptance rates along the last axis."""
    return np.cumprod(reached / np.maximum(at_risk, 1), axis=-1, dtype=np.float64)

"""Speed-up of prompts, with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speculators.evaluation.acceptance import RESAMPLES
from speculators.evaluation.slices import PromptRow


def speed(rows: Sequence[PromptRow]) -> float | None:
    """Return answer tokens per second with drafting; None without a clock."""
    seconds = sum(row.seconds for row in rows)
    return sum(row.tokens for row in rows) / seconds if seconds > 0 else None


def speedup(rows: Sequence[PromptRow]) -> float | None:
    """Return tokens per second over those of plain decoding; None where it was not compared."""
    table = _table(rows)
    return None if table is None else float(_ratios(table.sum(0, keepdims=True))[0])


def speedup_interval(rows: Sequence[PromptRow], *, seed: int = 0) -> list[float] | None:
    """Return the 95 % interval of the speed-up, resampling prompts; None with fewer than two."""
    table = _table(rows)
    if table is None or len(table) < 2:
        return None
    count = len(table)
    generator = np.random.default_rng(seed)
    times = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.percentile(_ratios(times @ table), [2.5, 97.5]).tolist()


def _table(rows: Sequence[PromptRow]) -> np.ndarray | None:
    """Return tokens, seconds, plain tokens and plain seconds of every prompt."""
    table = np.array(
        [(r.tokens, r.seconds, r.plain_tokens, r.plain_seconds) for r in rows], dtype=np.float64
    ).reshape(-1, 4)  # None becomes nan
    usable = len(table) > 0 and not np.isnan(table).any() and (table[:, [1, 3]] > 0).all()
    return table if usable else None


def _ratios(sums: np.ndarray) -> np.ndarray:
    tokens, seconds, plain_tokens, plain_seconds = sums.T
    return (tokens / seconds) / (plain_tokens / plain_seconds)

"""Where two greedy answers part, and whether rounding explains it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from speculators.evaluation.result import Mismatch
from speculators.evaluation.verifier import CachedVerifier


def find_mismatch(
    verifier: CachedVerifier | None,
    prompt_ids: Sequence[int],
    expected: Sequence[int],
    got: Sequence[int],
    *,
    prompt_id: str,
    turn: int,
) -> Mismatch | None:
    """Return the first difference of two answers to one prompt; None where they are equal.

    Args:
        verifier: tells how close the two tokens are; None leaves that open.
        prompt_ids: the prompt of both.
        expected: the answer of plain decoding.
        got: the answer of speculative decoding.
        prompt_id: which prompt, for the record.
        turn: which of its answers, from 0.
    """
    if list(got) == list(expected):
        return None
    shorter = min(len(got), len(expected))
    index = next((i for i in range(shorter) if got[i] != expected[i]), shorter)
    gap = None
    if index < shorter and verifier is not None:
        gap = _gap(verifier, [*prompt_ids, *got[:index]], expected[index], got[index])
    return Mismatch(
        prompt_id,
        turn,
        index,
        expected[index] if index < len(expected) else None,
        got[index] if index < len(got) else None,
        gap,
    )


@torch.no_grad()
def _gap(verifier: CachedVerifier, prefix: Sequence[int], expected: int, got: int) -> float:
    ids = torch.tensor(prefix, dtype=torch.int64, device=verifier.device)
    step = verifier.forward(ids, verifier.new_cache(), (), num_logits=1)
    return float((step.logits[0, expected] - step.logits[0, got]).abs())

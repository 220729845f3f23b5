"""What an acceptance length is worth where reading weights is what takes the time."""

from __future__ import annotations

from typing import Any

from speculators.algorithms.base import Drafter
from speculators.verifier.sizes import num_weights
from speculators.verifier.spec import VerifierSpec


def forecast_speedup(length: float, drafter: Drafter[Any], spec: VerifierSpec) -> float:
    """Return the expected speed-up over plain decoding, one request at a time.

    A pass of a large model over a few tokens takes as long as reading its weights, so a draft and
    its check cost (1 + weights read by a proposal / weights of the verifier) plain steps and give
    `length` tokens. Kernels, scheduling and the cache are left out: it compares drafters of one
    verifier, at any size, without a clock.

    Args:
        length: acceptance length, bonus token counted.
        drafter: what proposes.
        spec: the verifier; its embedding is looked up and not read.
    """
    looked_up = 0 if spec.tie_word_embeddings else spec.vocab_size * spec.hidden_size
    return length / (1 + drafter.weights_read() / (num_weights(spec) - looked_up))

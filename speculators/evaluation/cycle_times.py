"""Times of drafting and verifying in this process, by number of tokens and batch size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from speculators.algorithms.base import Drafter
from speculators.data.types import PackedBatch
from speculators.evaluation.best_k import CycleTimes
from speculators.evaluation.inference import inference
from speculators.evaluation.verifier import CachedVerifier

_REPEATS = 5
_NEW = 3  # tokens confirmed per cycle


@runtime_checkable
class BatchedVerifier(CachedVerifier, Protocol):
    """A verifier that runs several sequences of one length at once."""

    def batch_logits(
        self, tokens: Int[Tensor, "row token"], cache: Any
    ) -> Float[Tensor, "row token vocab"]:
        """Append tokens to the cached ones of every row; logits of all of them."""
        ...


def cycle_times(
    verifier: BatchedVerifier, drafter: Drafter[Any], *, context: int, batch_size: int
) -> CycleTimes:
    """Measure the parts of a cycle behind `context` random tokens; the median of five each.

    Drafting for several sequences is one session's proposal plus what as many more blocks cost in
    one pass. The drafter's number of drafted tokens is varied, and restored.

    Args:
        verifier: runs on its own device.
        drafter: on the same device.
        context: tokens before the block.
        batch_size: sequences at once.
    """
    device, most = verifier.device, drafter.num_draft_tokens
    generator = torch.Generator().manual_seed(0)
    high = verifier.spec.num_tokens
    rows = torch.randint(high, (batch_size, context + most + 1), generator=generator).to(device)
    cache = verifier.new_cache()
    verifier.batch_logits(rows[:, :context], cache)

    def verify(count: int) -> float:
        def run() -> None:
            verifier.batch_logits(rows[:, context : context + count], cache)
            verifier.crop(cache, context)

        return _median(run, device)

    passes = [verify(count) for count in range(1, most + 2)]
    draft = []
    try:
        with inference(drafter):
            for count in range(1, most + 1):
                drafter.set_num_draft_tokens(count)
                draft.append(_drafting(drafter, context, batch_size, device))
    finally:
        drafter.set_num_draft_tokens(most)
    return CycleTimes(batch_size, passes[0], tuple(draft), tuple(passes[1:]))


def _drafting(drafter: Drafter[Any], context: int, batch_size: int, device: torch.device) -> float:
    states = len(drafter.config.target_layer_ids or ()), drafter.spec.hidden_size
    session = drafter.new_session()
    dtype = next(drafter.parameters()).dtype

    def propose(count: int) -> None:
        aux = torch.zeros(count, *states, device=device, dtype=dtype)
        session.propose(aux, torch.zeros(count, dtype=torch.int64, device=device))

    propose(max(1, context - _REPEATS * _NEW))
    alone = _median(lambda: propose(_NEW), device)
    if batch_size == 1:
        return alone
    length = batch_size * context
    index = torch.arange(length, device=device)
    batch = PackedBatch(
        input_ids=torch.zeros_like(index),
        loss_mask=torch.ones_like(index, dtype=torch.bool),
        document_ids=index // context,
        position_ids=index % context,
        aux=torch.zeros(length, *states, device=device, dtype=dtype),
        last=torch.zeros(length, states[1], device=device, dtype=dtype),
    )
    starts = context * torch.arange(1, batch_size + 1, device=device) - 2
    every = _median(lambda: drafter.draft(batch, starts), device)
    one = _median(lambda: drafter.draft(batch, starts[:1]), device)
    return alone + max(every - one, 0.0)


def _median(run: Callable[[], Any], device: torch.device) -> float:
    """Return the median of five runs after a first one that does not count."""
    run()
    seconds = []
    for _ in range(_REPEATS):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

"""What a cycle of speculative decoding costs beyond its two forward passes.

    python benchmarks/decode_cycle.py CHECKPOINT [--context 128] [--tokens 128] [--json FILE]

CHECKPOINT is a drafter of this project; its verifier runs here. Two things take turns, prompt by
prompt: whole decoding, of which the time from one verifier call to the next is a cycle; and the two
passes of a cycle alone, a proposal and a verifier pass over a block, one after the other behind a
context of the same length. One after the other, because two models that take turns find the
processor's caches filled with each other's weights; repeated by itself a pass is faster than it can
be in any loop (`warm` in the table). The ratio is the median cycle over the sum of the medians of
the two passes; 1.15 is the aim. `--cpu-time` counts the processor's time, not the wall's, for a
machine that others use too. That nothing of an accepted context is computed again is a test
(tests/evaluation/test_real_models.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from speculators.algorithms.base import Drafter
from speculators.config.loading import load_run_config
from speculators.conversion.layout import read_model
from speculators.evaluation.decode import decode
from speculators.evaluation.inference import inference
from speculators.launch.verifier_stage import Verifier
from speculators.verifier.model import VerifierModel

ROUNDS, PASSES, NEW = 8, 24, 2
Clock = Callable[[], float]


def main() -> None:
    """Print a table, and write it where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    config = load_run_config(asked.checkpoint / "run.yaml")
    opened = Verifier(config)
    verifier = opened.model()
    drafter = read_model(asked.checkpoint, spec=opened.spec, tables=opened.tables())
    clock = time.process_time if asked.cpu_time else time.perf_counter
    found = measure(verifier, drafter.to(opened.device), asked.context, asked.tokens, clock)
    for name, value in found.items():
        print(f"{name:28s} {value:,.3f}" if isinstance(value, float) else f"{name:28s} {value:,}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


def measure(
    verifier: VerifierModel, drafter: Drafter[Any], context: int, tokens: int, clock: Clock
) -> dict[str, float | int]:
    """Return times in milliseconds, their ratio, and the tokens that were computed."""
    generator = torch.Generator().manual_seed(0)
    layer_ids: list[int] = list(drafter.config.target_layer_ids or [])
    timed = _Timed(verifier, clock)
    cycles: list[float] = []
    blocks: list[float] = []
    proposals: list[float] = []
    warm: list[float] = []
    length = 0
    for number in range(ROUNDS + 1):
        prompt = torch.randint(verifier.spec.num_tokens, (context,), generator=generator).tolist()
        timed.starts.clear()
        with inference(drafter):
            decoded = decode(
                *(timed, prompt), drafter=drafter, layer_ids=layer_ids, max_new_tokens=tokens
            )
            middle = context + len(decoded.tokens) // 2
            block, proposal = passes(verifier, drafter, middle, clock, alternate=True)
            alone = passes(verifier, drafter, middle, clock, alternate=False)
        if number == 0:  # allocations and first calls
            continue
        # Between the prefill and the first block stands a proposal over the whole prompt.
        cycles += [b - a for a, b in zip(timed.starts[1:], timed.starts[2:], strict=False)]
        blocks += block
        proposals += proposal
        warm.append(statistics.median(alone[0]) + statistics.median(alone[1]))
        length += len(decoded.tokens)
    cycle, block, proposal = map(statistics.median, (cycles, blocks, proposals))
    return {
        "cycle_ms": 1e3 * cycle,
        "verifier_block_ms": 1e3 * block,
        "drafter_ms": 1e3 * proposal,
        "ratio": cycle / (block + proposal),
        "both_passes_warm_ms": 1e3 * statistics.median(warm),
        "context": context,
        "drafted_tokens": drafter.num_draft_tokens,
        "cycles": len(cycles),
        "answer_tokens": length,
    }


class _Timed(VerifierModel):
    """A verifier that notes when it is called."""

    def __init__(self, verifier: VerifierModel, clock: Clock) -> None:
        vars(self).update(vars(verifier))
        self._clock = clock
        self.starts: list[float] = []

    def forward(self, *args: Any, **options: Any) -> Any:
        self.starts.append(self._clock())
        return super().forward(*args, **options)


def passes(
    verifier: VerifierModel, drafter: Drafter[Any], context: int, clock: Clock, *, alternate: bool
) -> tuple[list[float], list[float]]:
    """Return seconds of verifier passes over a block, and of proposals, behind cached tokens.

    Args:
        verifier: runs the blocks.
        drafter: proposes after a few newly confirmed tokens.
        context: tokens in both caches.
        clock: tells the time.
        alternate: one after the other, as in a cycle; otherwise first all of the one.
    """
    layer_ids: list[int] = list(drafter.config.target_layer_ids or [])
    cache, session = verifier.new_cache(), drafter.new_session()
    verifier.forward(torch.ones(context, dtype=torch.int64), cache, (), num_logits=1)
    tokens = torch.ones(drafter.num_draft_tokens + 1, dtype=torch.int64)
    device = next(drafter.parameters()).device

    def block() -> float:
        began = clock()
        verifier.forward(tokens, cache, layer_ids)
        seconds = clock() - began
        verifier.crop(cache, context)
        return seconds

    def proposal(count: int = NEW) -> float:
        aux = torch.zeros(count, len(layer_ids), drafter.spec.hidden_size, device=device)
        confirmed = torch.ones(count, dtype=torch.int64, device=device)
        began = clock()
        session.propose(aux, confirmed)
        return clock() - began

    proposal(context - NEW * PASSES // 2)
    if alternate:
        both = [(block(), proposal()) for _ in range(PASSES)]
        return [one for one, _ in both], [other for _, other in both]
    return [block() for _ in range(PASSES)], [proposal() for _ in range(PASSES)]


if __name__ == "__main__":
    main()

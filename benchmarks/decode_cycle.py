"""What a cycle of speculative decoding costs beyond its two forward passes.

    python benchmarks/decode_cycle.py CHECKPOINT [--context 128] [--tokens 128] [--json FILE]

CHECKPOINT is a drafter of this project; its verifier runs here. Three things take turns, prompt by
prompt: whole decoding (prefill left out), one verifier pass over a block behind the same context,
and one proposal behind it. The ratio is the median cycle over the sum of the medians of the two
passes; 1.15 is the aim. That nothing of an accepted context is computed again is a test
(tests/evaluation/test_real_models.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
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

ROUNDS, PASSES, NEW = 8, 12, 2


def main() -> None:
    """Print a table, and write it where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    config = load_run_config(asked.checkpoint / "run.yaml")
    opened = Verifier(config)
    verifier = opened.model()
    drafter = read_model(asked.checkpoint, spec=opened.spec, tables=opened.tables())
    found = measure(verifier, drafter.to(opened.device), asked.context, asked.tokens)
    for name, value in found.items():
        print(f"{name:28s} {value:,.3f}" if isinstance(value, float) else f"{name:28s} {value:,}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


def measure(
    verifier: VerifierModel, drafter: Drafter[Any], context: int, tokens: int
) -> dict[str, float | int]:
    """Return times in milliseconds, their ratio, and the tokens that were computed."""
    generator = torch.Generator().manual_seed(0)
    layer_ids: list[int] = list(drafter.config.target_layer_ids or [])
    cycles: list[float] = []
    blocks: list[float] = []
    proposals: list[float] = []
    calls = length = 0
    for number in range(ROUNDS + 1):
        prompt = torch.randint(verifier.spec.num_tokens, (context,), generator=generator).tolist()
        with inference(drafter):
            decoded = decode(
                *(verifier, prompt), drafter=drafter, layer_ids=layer_ids, max_new_tokens=tokens
            )
            middle = context + len(decoded.tokens) // 2
            block = block_pass(verifier, layer_ids, middle, drafter.num_draft_tokens + 1)
            proposal = proposal_pass(drafter, middle)
        if number == 0:  # allocations and first calls
            continue
        cycles.append((decoded.seconds - decoded.prefill_seconds) / len(decoded.drafts))
        blocks.append(block)
        proposals.append(proposal)
        calls += len(decoded.drafts)
        length += len(decoded.tokens)
    cycle, block, proposal = map(statistics.median, (cycles, blocks, proposals))
    return {
        "cycle_ms": 1e3 * cycle,
        "verifier_block_ms": 1e3 * block,
        "drafter_ms": 1e3 * proposal,
        "ratio": cycle / (block + proposal),
        "context": context,
        "drafted_tokens": drafter.num_draft_tokens,
        "cycles": calls,
        "answer_tokens": length,
    }


def block_pass(verifier: VerifierModel, layer_ids: list[int], context: int, size: int) -> float:
    """Return the median seconds of a verifier pass over one block behind cached tokens."""
    cache = verifier.new_cache()
    verifier.forward(torch.ones(context, dtype=torch.int64), cache, (), num_logits=1)
    block, seconds = torch.ones(size, dtype=torch.int64), []
    for _ in range(PASSES):
        began = time.perf_counter()
        verifier.forward(block, cache, layer_ids)
        seconds.append(time.perf_counter() - began)
        verifier.crop(cache, context)
    return statistics.median(seconds)


def proposal_pass(drafter: Drafter[Any], context: int) -> float:
    """Return the median seconds of a proposal after a few newly confirmed tokens."""
    session, spec = drafter.new_session(), drafter.spec
    states = len(drafter.config.target_layer_ids or ()), spec.hidden_size
    device = next(drafter.parameters()).device

    def propose(count: int) -> float:
        aux = torch.zeros(count, *states, device=device)
        began = time.perf_counter()
        session.propose(aux, torch.ones(count, dtype=torch.int64, device=device))
        return time.perf_counter() - began

    propose(context - NEW * PASSES // 2)
    return statistics.median(propose(NEW) for _ in range(PASSES))


if __name__ == "__main__":
    main()

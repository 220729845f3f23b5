"""FlexAttention's block mask from structure: time and memory beside `create_block_mask`.

    python benchmarks/block_mask.py [--rounds 20] [--json FILE]

Rows of 8,192 tokens (documents of about 1,000) with 3,072 random anchors and blocks of 8, full and
with a window of 2,048; and a smaller row (2,048 tokens, 256 anchors of 8) on which
`create_block_mask`, which evaluates the whole grid, is timed too. Median of all rounds, one thread.
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
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from speculators.attention.layout import BlockLayout, MaskRule
from speculators.attention.masks import anchored_block_mask
from speculators.attention.structure import block_mask

LISTS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices",
         "q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices")  # fmt: skip


def layout(length: int, anchors: int, block: int) -> BlockLayout:
    """Return blocks after random anchors of a row of documents."""
    index = torch.arange(length)
    chosen = torch.randperm(length - 2, generator=torch.Generator().manual_seed(0))[:anchors]
    return BlockLayout(chosen.sort().values, anchors, index // 1000, index % 1000, block)


def median_seconds(build: Callable[[], BlockMask], rounds: int) -> float:
    """Return the median time of a call, after one that warms up."""
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        build()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def measure(
    length: int, anchors: int, block: int, rule: MaskRule, rounds: int, *, evaluated: bool
) -> dict[str, Any]:
    """Return time and bytes of one mask."""
    blocks = layout(length, anchors, block)
    mask = block_mask(blocks, rule)
    found = {
        "sequence": length,
        "anchors": anchors,
        "block": block,
        "window": rule.window,
        "grid_entries": blocks.num_queries * (length + blocks.num_slots),
        "seconds": median_seconds(lambda: block_mask(blocks, rule), rounds),
        "bytes": sum(getattr(mask, name).nbytes for name in LISTS),
    }
    if evaluated:
        keys = length + blocks.num_slots

        def evaluate() -> BlockMask:
            predicate = anchored_block_mask(blocks, rule)
            return create_block_mask(predicate, None, None, blocks.num_queries, keys, device="cpu")

        found["seconds_evaluated"] = median_seconds(evaluate, max(1, rounds // 10))
        found["equal"] = all(
            torch.equal(getattr(mask, name), getattr(evaluate(), name)) for name in LISTS
        )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [
        (2048, 256, 8, MaskRule(), True),
        (2048, 256, 8, MaskRule(window=512), True),
        (8192, 3072, 8, MaskRule(), False),
        (8192, 3072, 8, MaskRule(window=2048), False),
    ]
    rows = [
        measure(length, anchors, block, rule, options.rounds, evaluated=evaluated)
        for length, anchors, block, rule, evaluated in cases
    ]
    print(
        f"{'row':>22}{'window':>8}{'grid':>13}{'ms':>9}{'MiB':>8}{'evaluated ms':>14}{'equal':>7}"
    )
    for row in rows:
        name = f"{row['sequence']}, {row['anchors']} x {row['block']}"
        evaluated = row.get("seconds_evaluated")
        print(
            f"{name:>22}{row['window'] or 'full':>8}{row['grid_entries']:13,d}"
            f"{1e3 * row['seconds']:9.2f}{row['bytes'] / 2**20:8.2f}"
            f"{'' if evaluated is None else f'{1e3 * evaluated:.0f}':>14}"
            f"{'' if evaluated is None else str(row['equal']):>7}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How long 800,000 samples take to be laid into rows, how full the rows are, and what it costs.

    python benchmarks/packing.py [--count 800000] [--sequence-length 8192] [--ranks 8]

Lengths are drawn as those of ShareGPT are spread (lognormal, median 735 tokens, from 8 to a row).
Printed: seconds for one epoch's order, filled share, rows, bytes kept, peak bytes while packing,
seconds to take up an epoch in its middle, and the largest over the smallest number of tokens a rank
gets.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc

import numpy as np

from speculators.data.packing import filled_share, pack


def measure(count: int, room: int, ranks: int) -> dict[str, float]:
    """Pack once for the time, once more for the memory."""
    draws = np.random.default_rng(0).lognormal(6.6, 1.0, count)
    lengths = np.clip(draws, 8, room).astype(np.int64)
    start = time.perf_counter()
    rows = pack(lengths, room, seed=0, epoch=0)
    packed = time.perf_counter()
    rest = pack(lengths, room, seed=0, epoch=0)[len(rows) // 2 :]
    resumed = time.perf_counter()
    assert np.array_equal(rest[0], rows[len(rows) // 2])
    tracemalloc.start()
    pack(lengths, room, seed=0, epoch=1)
    peak = tracemalloc.get_traced_memory()[1]
    tokens = [int(lengths[rows.of_rank(rank, ranks).indices].sum()) for rank in range(ranks)]
    return {
        "samples": count,
        "rows": len(rows),
        "seconds": packed - start,
        "seconds_to_resume": resumed - packed,
        "filled_share": filled_share(rows, lengths, room),
        "kept_bytes": rows.indices.nbytes + rows.offsets.nbytes,
        "peak_bytes": peak,
        "largest_over_smallest_rank": max(tokens) / min(tokens),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=800_000)
    parser.add_argument("--sequence-length", type=int, default=8192)
    parser.add_argument("--ranks", type=int, default=8)
    arguments = parser.parse_args()
    result = measure(arguments.count, arguments.sequence_length, arguments.ranks)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

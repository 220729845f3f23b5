"""How attention on a CPU grows: time and memory against anchors * block * (sequence + block).

    python benchmarks/attention_growth.py [--rounds 3] [--json FILE] [--plot FILE.png]

Forward and backward of the structured attention (`attention=sdpa`) in fp32, 4 query and 2 key/value
heads of 64, one document, one thread, beside plain attention over the grid of all queries and all
keys, where the grid is small enough. The two are compared first. Visible pairs is what the mask
lets through, counted from the bounds; the grid is queries * keys. Median of the rounds.
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
from torch import Tensor

from speculators.attention.backend import prepare_attention
from speculators.attention.layout import BlockLayout, MaskRule
from speculators.attention.masks import dense_mask
from speculators.config.schema import AttentionBackend
from speculators.training.live_bytes import LiveBytes

HEADS, KV_HEADS, DIM, BLOCK = 4, 2, 64, 8
SIZES = [(512, 32), (512, 64), (1024, 64), (1024, 128), (2048, 128), (2048, 256), (4096, 512)]
LARGEST_GRID = 6_000_000


def inputs(layout: BlockLayout) -> list[Tensor]:
    """Return q, k_context, v_context, k_block, v_block."""
    g = torch.Generator().manual_seed(0)
    blocks, length = (layout.num_blocks, BLOCK), layout.sequence_length
    shapes = [(*blocks, HEADS), (length, KV_HEADS), (length, KV_HEADS), *[(*blocks, KV_HEADS)] * 2]
    return [torch.randn(*shape, DIM, generator=g).requires_grad_() for shape in shapes]


def structured(layout: BlockLayout, tensors: list[Tensor]) -> Tensor:
    """Attend by segments, the mask's own preparation included."""
    attend = prepare_attention(
        layout, MaskRule(), AttentionBackend.sdpa, torch.device("cpu"), gradients=True
    )
    return attend(*tensors)


def plain(layout: BlockLayout, tensors: list[Tensor]) -> Tensor:
    """Attend over the whole grid."""
    q, kc, vc, kb, vb = tensors
    keys, values = (torch.cat([c, b.flatten(0, 1)]) for c, b in ((kc, kb), (vc, vb)))
    out = torch.nn.functional.scaled_dot_product_attention(
        q.flatten(0, 1).transpose(0, 1)[None], keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None], attn_mask=dense_mask(layout, MaskRule()), enable_gqa=True,
    )  # fmt: skip
    return out[0].transpose(0, 1).reshape(q.shape)


def cost(run: Callable[[], Tensor], rounds: int) -> tuple[float, int]:
    """Return the median time and the peak bytes of forward and backward."""
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        run().sum().backward()
        seconds.append(time.perf_counter() - begin)
    with LiveBytes() as live:
        run().sum().backward()
    return statistics.median(seconds[1:]), live.peak


def measure(length: int, anchors: int, rounds: int) -> dict[str, Any]:
    """Return what one size costs."""
    chosen = torch.randperm(length - BLOCK, generator=torch.Generator().manual_seed(1))[:anchors]
    index = torch.arange(length)
    layout = BlockLayout(chosen.sort().values, anchors, index * 0, index, BLOCK)
    tensors = inputs(layout)
    first, end = layout.context_bounds(MaskRule())
    visible = int((end[:, None] - first).clamp(min=0).sum()) + anchors * BLOCK * BLOCK
    seconds, peak = cost(lambda: structured(layout, tensors), rounds)
    found = {
        "sequence": length,
        "anchors": anchors,
        "block": BLOCK,
        "bound": anchors * BLOCK * (length + BLOCK),
        "visible": visible,
        "grid": layout.num_queries * (length + layout.num_slots),
        "seconds": seconds,
        "peak_bytes": peak,
    }
    if found["grid"] <= LARGEST_GRID:
        deviation = (structured(layout, tensors) - plain(layout, tensors)).abs().max()
        seconds, peak = cost(lambda: plain(layout, tensors), rounds)
        found |= {
            "plain_seconds": seconds,
            "plain_peak_bytes": peak,
            "deviation": float(deviation.detach()),
        }
    return found


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw time and memory over anchors * block * (sequence + block)."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5))
    for axis, name, unit, scale in (
        (axes[0], "seconds", "ms", 1e3), (axes[1], "peak_bytes", "MiB", 2**-20),
    ):  # fmt: skip
        for key, label in ((name, "structured"), (f"plain_{name}", "whole grid")):
            points = [(row["bound"], scale * row[key]) for row in rows if key in row]
            axis.plot(*zip(*points, strict=True), marker="o", label=label)
        axis.set_xlabel("anchors * block * (sequence + block)")
        axis.set_ylabel(unit)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(length, anchors, options.rounds) for length, anchors in SIZES]
    print(f"{'sequence':>9}{'anchors':>9}{'bound':>12}{'grid':>13}{'ms':>9}{'ns/bound':>10}"
          f"{'MiB':>8}{'B/bound':>9}{'grid ms':>10}{'grid MiB':>10}{'deviation':>11}")  # fmt: skip
    for row in rows:
        print(
            f"{row['sequence']:9d}{row['anchors']:9d}{row['bound']:12,d}{row['grid']:13,d}"
            f"{1e3 * row['seconds']:9.1f}{1e9 * row['seconds'] / row['bound']:10.2f}"
            f"{row['peak_bytes'] / 2**20:8.1f}{row['peak_bytes'] / row['bound']:9.1f}"
            + (f"{1e3 * row['plain_seconds']:10.1f}{row['plain_peak_bytes'] / 2**20:10.1f}"
               f"{row['deviation']:11.1e}" if "deviation" in row else "")
        )  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()

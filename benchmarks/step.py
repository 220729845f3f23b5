"""One DFlash training step on a CPU: this package against two plain PyTorch versions.

    python benchmarks/step.py [--rounds 5] [--threads 1] [--json FILE]

Setting: fp32, hidden 512, 5 layers (17.0 M weights), vocabulary 32,000, a row of 512 tokens, 64
blocks of 8, cross-entropy on the tokens of the data, forward and backward. The versions take turns;
the fastest round of each counts. Losses and gradients are compared first.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from plain_dflash import PlainDFlash
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from speculators.algorithms.anchors import anchor_candidates, random_anchors
from speculators.algorithms.base import StepContext
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.dflash.loss import slot_weights
from speculators.algorithms.dflash.model import DFlashDrafter
from speculators.config.schema.speculator import LossWeights
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.modules import gemm
from speculators.modules.chunked_head import chunked_head_loss
from speculators.training.live_bytes import LiveBytes
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec

HIDDEN, VOCAB, LENGTH, ANCHORS, BLOCK, LAYERS, STATES = 512, 32_000, 512, 64, 8, 5, 5
STEP = StepContext(seed=0, step=0)
SPEC = VerifierSpec(
    name_or_path="none", folder="none", revision=None, architecture="Qwen3ForCausalLM",
    model_type="qwen3", num_layers=36, hidden_size=HIDDEN, intermediate_size=1536,
    vocab_size=VOCAB, num_tokens=VOCAB, num_attention_heads=8, num_key_value_heads=4, head_dim=64,
    hidden_act="silu", rms_norm_eps=1e-6,
    rope_parameters={"rope_theta": 1e6, "rope_type": "default"}, max_position_embeddings=4096,
    dtype="float32", tie_word_embeddings=False, bos_token_id=None, pad_token_id=0,
    eos_token_ids=(1,),
)  # fmt: skip


def build() -> tuple[DFlashDrafter, VerifierHead, PackedBatch]:
    """Return drafter, teacher and row of the setting."""
    g = torch.Generator().manual_seed(0)
    config = DFlashConfig(
        num_layers=LAYERS, block_size=BLOCK, max_anchors=ANCHORS, mask_token_id=2,
        loss=LossWeights(ce=1.0),
    )  # fmt: skip
    embed, head = (torch.randn(VOCAB, HIDDEN, generator=g) * 0.02 for _ in range(2))
    drafter = DFlashDrafter.build(
        DFlashDrafter.resolve(config, SPEC, []), SPEC, DraftVocabulary.full(VOCAB),
        embed_tokens=embed, lm_head=head, generator=g,
    )  # fmt: skip
    index = torch.arange(LENGTH)
    row = PackedBatch(
        input_ids=torch.randint(3, VOCAB, (LENGTH,), generator=g),
        loss_mask=index >= 0,
        document_ids=index * 0,
        position_ids=index,
        aux=torch.randn(LENGTH, STATES, HIDDEN, generator=g),
        last=torch.randn(LENGTH, HIDDEN, generator=g),
    )
    return drafter, VerifierHead(SPEC, torch.ones(HIDDEN), head), row


def versions(
    drafter: DFlashDrafter, teacher: VerifierHead, row: PackedBatch
) -> dict[str, Callable[[], Tensor]]:
    """Return the forward passes to compare; each returns the summed loss."""
    candidates = anchor_candidates(row.loss_mask, row.document_ids)
    anchors = random_anchors(candidates, ANCHORS, STEP.generator("anchors"))
    weights = slot_weights(drafter.config.position_weights, BLOCK, 4.0)
    plain = PlainDFlash(
        dict(drafter.named_parameters()), drafter.embed_tokens, drafter.lm_head.weight,
        num_layers=LAYERS, head_dim=64, block_size=BLOCK, mask_token_id=2, rope_theta=1e6, eps=1e-6,
    )  # fmt: skip

    def plain_step(chunk_slots: int | None) -> Tensor:
        return plain.loss(
            row.aux.flatten(1), row.input_ids, row.loss_mask, row.document_ids,
            row.position_ids, anchors, weights, chunk_slots,
        )  # fmt: skip

    return {
        "ours": lambda: drafter.compute_loss(row, teacher, STEP).loss_sum,
        "full logits": lambda: plain_step(None),
        "checkpointed chunks": lambda: plain_step(128),
    }


def agreement(
    steps: dict[str, Callable[[], Tensor]], drafter: DFlashDrafter
) -> dict[str, dict[str, float]]:
    """Return loss and largest relative deviation of a gradient from the full-logits version."""
    parameters = list(drafter.parameters())
    results = {name: (loss := step(), torch.autograd.grad(loss, parameters))
               for name, step in steps.items()}  # fmt: skip
    _, reference = results["full logits"]
    return {
        name: {
            "loss": float(loss.detach()),
            "gradient_deviation": max(
                float((a - b).norm() / b.norm()) for a, b in zip(grads, reference, strict=True)
            ),
        }
        for name, (loss, grads) in results.items()
    }


def fastest(
    steps: dict[str, Callable[[], Tensor]], drafter: DFlashDrafter, rounds: int
) -> dict[str, float]:
    """Return the seconds of the fastest step of each version, taking turns."""
    seconds = dict.fromkeys(steps, float("inf"))
    for number in range(rounds + 1):
        for name, step in steps.items():
            drafter.zero_grad(set_to_none=True)
            begin = time.perf_counter()
            step().backward()
            if number:  # the first round warms up
                seconds[name] = min(seconds[name], time.perf_counter() - begin)
    return seconds


def peak_bytes(steps: dict[str, Callable[[], Tensor]], drafter: DFlashDrafter) -> dict[str, int]:
    """Return the peak of live tensors of each step, weight gradients included."""
    peaks = {}
    for name, step in steps.items():
        drafter.zero_grad(set_to_none=True)
        with LiveBytes() as live:
            step().backward()
        peaks[name] = live.peak
    return peaks


def head_peak_bytes(drafter: DFlashDrafter) -> dict[str, int]:
    """Return the peak of what head and loss alone make, forward and backward, at all slots."""
    g = torch.Generator().manual_seed(1)
    slots = ANCHORS * (BLOCK - 1)
    labels = torch.randint(0, VOCAB, (slots,), generator=g)
    head = drafter.lm_head.weight

    def full(x: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(x @ head.T, labels, reduction="none")

    def chunks(x: Tensor) -> Tensor:
        def part(x: Tensor, y: Tensor) -> Tensor:
            return torch.nn.functional.cross_entropy(x @ head.T, y, reduction="none")

        pairs = zip(x.split(128), labels.split(128), strict=True)
        return torch.cat([checkpoint(part, a, b, use_reentrant=False) for a, b in pairs])

    def ours(x: Tensor) -> Tensor:
        return chunked_head_loss(x, head, {"ce": 1.0}, labels=labels).loss

    peaks = {}
    for name, loss in {"ours": ours, "full logits": full, "checkpointed chunks": chunks}.items():
        hidden = torch.randn(slots, HIDDEN, generator=g).requires_grad_()
        with LiveBytes() as live:
            loss(hidden).sum().backward()
        peaks[name] = live.peak
    return peaks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    drafter, teacher, row = build()
    steps = versions(drafter, teacher, row)
    agreed = agreement(steps, drafter)
    seconds = fastest(steps, drafter, options.rounds)
    without = _without_onednn(steps, drafter, options.rounds)
    peaks, heads = peak_bytes(steps, drafter), head_peak_bytes(drafter)
    rows = [
        {
            "version": name,
            "seconds": seconds[name],
            "peak_bytes": peaks[name],
            "head_peak_bytes": heads[name],
            **agreed[name],
        }
        for name in steps
    ]
    rows[0]["seconds_with_mkl_products"] = without
    print(
        f"{'':22}{'ms':>8}{'of full':>9}{'of chunks':>11}{'peak MiB':>10}{'head MiB':>10}"
        f"{'loss':>13}{'gradients':>11}"
    )
    for entry in rows:
        ratios = [entry["seconds"] / seconds[n] for n in ("full logits", "checkpointed chunks")]
        print(
            f"{entry['version']:22}{1e3 * entry['seconds']:8.0f}{ratios[0]:9.2f}{ratios[1]:11.2f}"
            f"{entry['peak_bytes'] / 2**20:10.0f}{entry['head_peak_bytes'] / 2**20:10.1f}"
            f"{entry['loss']:13.4f}{entry['gradient_deviation']:11.1e}"
        )
    ratios = [without / seconds[name] for name in ("full logits", "checkpointed chunks")]
    print(f"{'ours, MKL products':22}{1e3 * without:8.0f}{ratios[0]:9.2f}{ratios[1]:11.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def _without_onednn(
    steps: dict[str, Callable[[], Tensor]], drafter: DFlashDrafter, rounds: int
) -> float:
    """Return our time when products go where torch sends them: what the rest is worth alone."""
    available = gemm.onednn_available
    gemm.onednn_available = lambda: False  # pyright: ignore
    try:
        return fastest({"ours": steps["ours"]}, drafter, rounds)["ours"]
    finally:
        gemm.onednn_available = available


if __name__ == "__main__":
    main()

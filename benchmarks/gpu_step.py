"""One DFlash training step on a GPU: time, MFU, memory, mask share, compiled graphs.

    python benchmarks/gpu_step.py [--setting paper] [--compile] [--steps 20] [--json FILE]
    python benchmarks/gpu_step.py --setting tutorial

Qwen3-8B's sizes with random weights, bf16 arithmetic over fp32 weights, AdamW, 5 draft layers, 5
target layers. `paper`: rows of 3,072 tokens, 512 anchors of 16, the whole vocabulary (151,936);
`tutorial`: rows of 8,192, 3,072 anchors of 8, draft vocabulary of 8,192; `domino`: rows of 768, 256
anchors of 16, two rows a step, as a published figure of 43.5 % MFU on one H200 has it. Rows wait in
pinned memory, as a loader leaves them; anchors are drawn anew in every step. A step is forward,
backward and update, timed by events from one step's end to the next one's, median. MFU is the
algorithm's own count of FLOPs over the data sheet's dense bf16 peak. FlexAttention is compared with
the structured attention of the CPU first, on a small row, in fp32.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speculators.algorithms.base import Drafter
from speculators.algorithms.cost import Workload
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.dflash.model import DFlashDrafter
from speculators.attention.backend import prepare_attention
from speculators.attention.layout import BlockLayout, MaskRule
from speculators.config.schema import AdamWConfig, AttentionBackend, LossWeights, Precision
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.modules.compiling import num_graphs
from speculators.training.devices import describe_device
from speculators.training.optimizers import build_optimizers
from speculators.training.ranks import Ranks
from speculators.training.spread import Replicated
from speculators.training.step import Stepper
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec

WARM_UP = 3
SPEC = VerifierSpec(
    name_or_path="none", folder="none", revision=None, architecture="Qwen3ForCausalLM",
    model_type="qwen3", num_layers=36, hidden_size=4096, intermediate_size=12288,
    vocab_size=151_936, num_tokens=151_669, num_attention_heads=32, num_key_value_heads=8,
    head_dim=128, hidden_act="silu", rms_norm_eps=1e-6,
    rope_parameters={"rope_theta": 1e6, "rope_type": "default"}, max_position_embeddings=40_960,
    dtype="bfloat16", tie_word_embeddings=False, bos_token_id=None, pad_token_id=151_643,
    eos_token_ids=(151_645,),
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Sizes of a step."""

    sequence: int
    anchors: int
    block: int
    draft_vocabulary: int
    rows: int = 1


SETTINGS = {
    "paper": Setting(3072, 512, 16, 151_936),
    "tutorial": Setting(8192, 3072, 8, 8192),
    "domino": Setting(768, 256, 16, 151_936, rows=2),
}


def build(setting: Setting, device: torch.device) -> tuple[Drafter[Any], VerifierHead]:
    """Return drafter and teacher on the device, which share the tables."""
    g = torch.Generator(device).manual_seed(0)
    shape, kind = (SPEC.vocab_size, SPEC.hidden_size), torch.bfloat16
    embed, head = (
        torch.empty(shape, dtype=kind, device=device).normal_(0, 0.02, generator=g)
        for _ in range(2)
    )
    config = DFlashConfig(
        num_layers=5, block_size=setting.block, max_anchors=setting.anchors, mask_token_id=151_669,
        draft_vocab_size=setting.draft_vocabulary, target_layer_ids=[2, 10, 18, 26, 34],
        loss=LossWeights(ce=1.0),
    )  # fmt: skip
    ids = torch.arange(setting.draft_vocabulary)
    drafter = DFlashDrafter.build(
        DFlashDrafter.resolve(config, SPEC, [151_669]), SPEC,
        DraftVocabulary(ids, SPEC.vocab_size), embed_tokens=embed, lm_head=head,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    teacher = VerifierHead(SPEC, torch.ones(SPEC.hidden_size), head)
    return drafter.to(device).train(), teacher.to(device)


def row(setting: Setting) -> PackedBatch:
    """Return a row in pinned memory: documents of 1,024 tokens, their first half a prompt."""
    g = torch.Generator().manual_seed(1)
    length, index = setting.sequence, torch.arange(setting.sequence)
    document = min(length, 1024)

    def states(*shape: int) -> torch.Tensor:
        drawn = torch.empty(length, *shape, SPEC.hidden_size, dtype=torch.bfloat16)
        return drawn.normal_(generator=g).pin_memory()

    return PackedBatch(
        input_ids=torch.randint(setting.draft_vocabulary, (length,), generator=g).pin_memory(),
        loss_mask=(index % document >= document // 2).pin_memory(),
        document_ids=(index // document).pin_memory(),
        position_ids=(index % document).pin_memory(),
        aux=states(5),
        last=states(),
    )


def flex_deviation(device: torch.device) -> dict[str, float]:
    """Return how far FlexAttention is from the structured attention, output and gradients."""
    g = torch.Generator().manual_seed(2)
    length, index = 384, torch.arange(384)
    anchors = torch.randperm(length - 8, generator=g)[:40].sort().values
    layout = BlockLayout(anchors, 40, index // 128, index % 128, 8)
    blocks = (layout.num_blocks, layout.block_size)
    shapes = [(*blocks, 4), (length, 2), (length, 2), (*blocks, 2), (*blocks, 2)]
    inputs = [torch.randn(*shape, 64, generator=g) for shape in shapes]
    found = []
    for backend, where in ((AttentionBackend.flex, device), (AttentionBackend.sdpa, "cpu")):
        tensors = [x.to(where).requires_grad_() for x in inputs]
        attend = prepare_attention(layout, MaskRule(window=50), backend, where, gradients=True)
        out = attend(*tensors)
        out.square().sum().backward()
        found.append([out.detach().cpu(), *(x.grad.cpu() for x in tensors)])  # type: ignore[union-attr]
    names = ("output", "q", "k_context", "v_context", "k_block", "v_block")
    pairs = zip(names, *found, strict=True)
    return {name: float((a - b).norm() / b.norm()) for name, a, b in pairs}


def mask_seconds(drafter: Drafter[Any], setting: Setting, device: torch.device) -> float:
    """Return the median time the host takes for a step's block mask."""
    index = torch.arange(setting.sequence)
    anchors = torch.randperm(setting.sequence - 2)[: setting.anchors].sort().values
    layout = BlockLayout(anchors, len(anchors), index // 1024, index % 1024, setting.block)
    seconds = []
    for _ in range(10):
        begin = time.perf_counter()
        prepare_attention(layout, MaskRule(), AttentionBackend.flex, device, gradients=True)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def measure(setting: Setting, steps: int, device: torch.device, *, fuse: bool) -> dict[str, Any]:
    """Train for some steps and return what they took."""
    drafter, teacher = build(setting, device)
    optimizers = build_optimizers(drafter.trainable_parameters(), AdamWConfig(lr=1e-4))
    stepper = Stepper(
        drafter, teacher, optimizers, device, Precision.bfloat16, 1.0, 0, Ranks(),
        Replicated(drafter, Ranks()), fuse,
    )  # fmt: skip
    rows = [row(setting)] * setting.rows
    for step in range(WARM_UP):
        assert stepper.run(rows, len(rows), step, 1.0).moved
    graphs = num_graphs()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    events, host, reports = [torch.cuda.Event(enable_timing=True)], [], []
    events[0].record()
    for step in range(WARM_UP, WARM_UP + steps):
        begin = time.perf_counter()
        reports.append(stepper.run(rows, len(rows), step, 1.0))
        host.append(time.perf_counter() - begin)
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()
        if len(reports) > 1:
            assert reports[-2].moved  # the host is one step ahead, as in training
    torch.cuda.synchronize(device)
    seconds = statistics.median(a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events))
    work = Workload.of(rows[0], bfloat16=True, fused_attention=True)
    flops, peak = setting.rows * drafter.step_cost(work).flops, describe_device(device).peak_flops
    mask = setting.rows * mask_seconds(drafter, setting, device)
    return {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "compile": fuse,
        "seconds": seconds,
        "host_seconds": statistics.median(host),
        "tokens_per_second": setting.rows * setting.sequence / seconds,
        "tflop": flops / 1e12,
        "mfu": None if peak is None else flops / seconds / peak,
        "peak_bytes": torch.cuda.max_memory_allocated(device),
        "mask_seconds": mask,
        "mask_share": mask / seconds,
        "graphs": num_graphs(),
        "graphs_after_warm_up": num_graphs() - graphs,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setting", choices=SETTINGS, default="paper")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: benchmarks/gpu_step.py: needs an NVIDIA GPU, and there is none")
    device, setting = torch.device("cuda", 0), SETTINGS[options.setting]
    found = {"setting": options.setting, **vars(setting)}
    found["flex_deviation"] = flex_deviation(device)
    found |= measure(setting, options.steps, device, fuse=options.compile)
    for key, value in found.items():
        print(f"{key:22}{value if not isinstance(value, float) else f'{value:.5g}'}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""One training step of every algorithm, on the CPU and on an accelerator that is not there.

Run as a program, with the names of cases (none: all): prints what was waited for, and how far apart
the two are, as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from algorithms.rows import make_batch
from algorithms.test_every_algorithm import VOCABULARIES, build, teacher
from attention.packings import random_layout
from speculators.algorithms.base import Drafter
from speculators.algorithms.dflash.config import PositionWeights
from speculators.attention.layout import MaskRule
from speculators.attention.structure import block_mask
from speculators.config.discovery import algorithms
from speculators.config.schema import AdamWConfig, CeLabels, LossWeights, Precision
from speculators.data.types import PackedBatch
from speculators.training.ema import WeightAverage
from speculators.training.optimizers import build_optimizers
from speculators.training.ranks import Ranks
from speculators.training.spread import Replicated
from speculators.training.step import Stepper, StepReport
from training import pretend_device

DEVICE = pretend_device.register()
waits: list[str] = []
CASES: dict[str, dict[str, Any]] = {
    "ce": {"loss": LossWeights(ce=1.0), "position_weights": PositionWeights.dpace},
    "ce of the verifier": {"loss": LossWeights(ce=1.0), "ce_labels": CeLabels.verifier},
    "tv": {"loss": LossWeights(tv=1.0), "train_lm_head": True},
    "reduced": {"loss": LossWeights(kl=1.0, ce=0.5), "vocabulary": VOCABULARIES[1]},
}


def take_step(drafter: Drafter[Any], device: torch.device, rows: list[PackedBatch]) -> StepReport:
    """Make one step over all rows, and take it into an average."""
    stepper = Stepper(
        drafter.train(),
        teacher(),
        build_optimizers(drafter.trainable_parameters(), AdamWConfig(lr=0.01)),
        device,
        Precision.float32,
        1.0,
        0,
        Ranks(),
        Replicated(drafter, Ranks()),
    )
    stepper.teacher.to(device)
    average = WeightAverage(drafter.trainable_parameters(), 0.9)
    waits.clear()
    report = stepper.run(rows, len(rows), 0, 1.0)
    average.update(report.usable)
    return report


def compare(name: str, changes: dict[str, Any], rows: list[PackedBatch]) -> dict[str, Any]:
    """Return what a step on the device waited for, and how far its weights are from the CPU's."""
    on_cpu, there = (build(name, num_layers=2, **changes) for _ in range(2))
    expected = take_step(on_cpu, torch.device("cpu"), rows)
    with pretend_device.Pretending(waits):
        report = take_step(there.to(DEVICE), DEVICE, rows)
        inside = list(waits)
        norm = report.gradient_norm
        after = waits[len(inside) :]
        moved = {n: p.detach().cpu() for n, p in there.trainable_parameters().items()}
    apart = [(p.detach() - moved[n]).abs().max() for n, p in on_cpu.trainable_parameters().items()]
    return {
        "waits": inside,
        "waits_for_numbers": after,
        "gradient_norms": [norm, expected.gradient_norm],
        "weights_apart": float(torch.stack(apart).max()),
    }


def known_waits() -> list[str]:
    """Do what makes a host wait, to see that it is noticed."""
    waits.clear()
    with pretend_device.Pretending(waits):
        x = torch.arange(4.0, device=DEVICE)
        x.sum().item()
        x[x > 1].sum()
        x[torch.tensor([1, 2])].sum()
        torch.ones(2).to(DEVICE)
        x.cpu()
        x.nonzero()
        torch.ones(2).to(DEVICE, non_blocking=True).add_(1)
    return list(waits)


def mask_waits() -> list[str]:
    """Build the block mask of FlexAttention on the device."""
    waits.clear()
    with pretend_device.Pretending(waits):
        for rule in (MaskRule(), MaskRule(window=50)):
            block_mask(random_layout(2, max_tokens=300), rule, DEVICE)
    return list(waits)


def main(cases: list[str]) -> None:
    """Print what was found."""
    torch.set_num_threads(1)
    rows = [make_batch((24, 16)), make_batch((30,))]
    found: dict[str, Any] = {"known": known_waits(), "mask": mask_waits(), "steps": {}}
    for name in algorithms():
        for case in cases or CASES:
            found["steps"][f"{name}, {case}"] = compare(name, CASES[case], rows)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])

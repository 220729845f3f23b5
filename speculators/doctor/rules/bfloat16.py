"""Weights that are all bf16 numbers lose every step smaller than the spacing of bf16."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from speculators.doctor.case import Case
from speculators.doctor.causes import FROZEN_BFLOAT16
from speculators.doctor.diagnosis import Diagnosis, Rule, confirmed
from speculators.training.checkpoint import OPTIMIZER_FILE, CheckpointFolder

_ALMOST_ALL = 0.99


def look(case: Case) -> Diagnosis | None:
    """Count weights under the optimizer that bf16 can hold, and those that still move."""
    if not case.checkpoints:
        return None
    weights = _masters(case.checkpoints[-1])
    share = rounded_share(weights)
    if share < _ALMOST_ALL:
        return None
    test = "only one checkpoint is kept: train on and compare two"
    if len(case.checkpoints) > 1:
        older = _masters(case.checkpoints[-2])
        still = sum(int((weights[k] == older[k]).sum()) for k in weights.keys() & older.keys())
        names = f"{case.checkpoints[-2].name} and {case.checkpoints[-1].name}"
        total = sum(weight.numel() for weight in weights.values())
        test = f"between checkpoints {names} {still / max(total, 1):.0%} of them did not move"
    return confirmed(
        FROZEN_BFLOAT16, f"{share:.0%} of the weights under the optimizer are bf16 numbers", test
    )


def rounded_share(weights: dict[str, Tensor]) -> float:
    """Return the share of matrix entries that bf16 holds exactly."""
    matrices = [weight for weight in weights.values() if weight.ndim > 1]
    exact = sum(int((w == w.to(torch.bfloat16).to(w.dtype)).sum()) for w in matrices)
    return exact / max(sum(weight.numel() for weight in matrices), 1)


def _masters(checkpoint: Path) -> dict[str, Tensor]:
    folder = CheckpointFolder(checkpoint.parent, None)
    return folder.load(checkpoint.name, OPTIMIZER_FILE)["master"]


RULE = Rule((FROZEN_BFLOAT16,), look)

from __future__ import annotations

from typing import Any

import pytest
import torch

from algorithms.dflash.rows import make_batch, make_config, make_drafter
from speculators.algorithms.base import StepContext
from speculators.algorithms.dflash.config import AnchorStrategy, PositionWeights
from speculators.config.schema import CeLabels, LossWeights


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": 6, "sliding_causal": True},
        {"position_weights": PositionWeights.dpace, "anchor_strategy": AnchorStrategy.walk},
    ],
    ids=str,
)
def test_overfits_one_row(changes: dict[str, Any]) -> None:
    """The loss falls and nearly every token of every block becomes right."""
    drafter, teacher = make_drafter(make_config(max_anchors=32, num_layers=2, **changes), scale=0.3)
    batch = make_batch((18, 14))
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=1e-2)
    losses = []
    for step in range(90):
        out = drafter.compute_loss(batch, teacher, StepContext(0, step))
        (out.loss_sum / out.divisor).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(out.loss_sum.detach() / out.divisor))
    assert losses[-1] < 0.1 * losses[0]
    drafter.eval()
    out = drafter.compute_loss(batch, teacher, StepContext(0, 0))
    assert out.sums["accuracy"] >= 0.95 * out.counts["accuracy"]
    starts = torch.tensor([4, 6, 9])
    drafted = drafter.draft(batch, starts)
    right = drafted == batch.input_ids[starts[:, None] + torch.arange(1, 5)]
    assert right.float().mean() > 0.9


@pytest.mark.parametrize("loss", [{"kl": 1.0}, {"tv": 1.0, "ce": 0.5}, {"lk_hybrid": 1.0}], ids=str)
def test_other_losses_fall(loss: dict[str, float]) -> None:
    drafter, teacher = make_drafter(
        make_config(loss=LossWeights(**loss), ce_labels=CeLabels.verifier, max_anchors=32),
        scale=0.3,
    )
    batch = make_batch((18, 14))
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=3e-3)
    values = []
    for _ in range(25):
        out = drafter.compute_loss(batch, teacher, StepContext(0, 0))
        (out.loss_sum / out.divisor).backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(out.loss_sum.detach() / out.divisor))
    assert values[-1] < 0.7 * values[0]

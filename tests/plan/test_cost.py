"""What algorithms say of their cost, against what a pass really keeps and computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from plan.drafters import make_drafter, make_row, workload_of
from speculators.algorithms.base import StepContext
from speculators.algorithms.cost import BYTES_PER_LOGIT
from speculators.config.schema.speculator import LossWeights
from speculators.modules import gemm, partition
from speculators.training.live_bytes import LiveBytes

CE, TV = LossWeights(ce=1.0), LossWeights(tv=1.0)
CASES = [
    pytest.param("dflash", {"max_anchors": 64, "loss": CE}, id="dflash-ce"),
    pytest.param("dflash", {"num_layers": 4, "max_anchors": 48}, id="dflash-kl"),
    pytest.param("dflash", {"max_anchors": 48, "loss": TV}, id="dflash-tv"),
    pytest.param("dspark", {"max_anchors": 64}, id="dspark"),
    pytest.param("eagle3", {"num_layers": 1}, id="eagle3"),
    pytest.param("eagle3", {}, id="eagle3-deep"),
    pytest.param("eagle3", {"activation_checkpointing": True, "num_layers": 1}, id="eagle3-again"),
    pytest.param("dflash", {"num_layers": 4, "activation_checkpointing": True}, id="dflash-again"),
    pytest.param("peagle", {"activation_checkpointing": True}, id="peagle-again"),
    pytest.param("peagle", {"num_layers": 1, "max_anchors": 64}, id="peagle"),
    pytest.param("peagle", {"max_anchors": 64}, id="peagle-deep"),
]
ROWS = [pytest.param(512, 512, id="one-document"), pytest.param(1024, 128, id="documents")]


@pytest.fixture(autouse=True)
def _countable_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send all products where the counter sees them."""
    monkeypatch.setattr(gemm, "onednn_available", lambda: False)


@pytest.mark.parametrize(("length", "document"), ROWS)
@pytest.mark.parametrize(("name", "changes"), CASES)
def test_memory_and_arithmetic_are_within_ten_percent(
    name: str, changes: dict[str, Any], length: int, document: int
) -> None:
    drafter, teacher = make_drafter(name, **changes)
    row = make_row(drafter, length, document, prompt=32)
    drafter.train()
    with LiveBytes() as live:
        output = drafter.compute_loss(row, teacher, StepContext(0, 1))
        kept = live.now
        output.loss_sum.backward()
    with FlopCounterMode(display=False) as counter:
        drafter.compute_loss(row, teacher, StepContext(0, 1)).loss_sum.backward()
    cost = drafter.step_cost(workload_of(row))
    said = sum(cost.kept_bytes.values())
    assert said == pytest.approx(kept, rel=0.1)
    assert said + cost.working_bytes == pytest.approx(live.peak, rel=0.1)
    assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_bfloat16_halves_the_stream_and_not_the_norms() -> None:
    from dataclasses import replace

    drafter, _ = make_drafter("dflash")
    wide = workload_of(make_row(drafter, 512, 512, prompt=32))
    narrow = replace(wide, bfloat16=True)
    before, after = drafter.step_cost(wide), drafter.step_cost(narrow)
    assert after.flops == before.flops
    assert 0.5 < after.kept_bytes["mlp"] / before.kept_bytes["mlp"] < 0.75
    assert after.kept_bytes["attention"] == before.kept_bytes["attention"]  # always fp32


def test_supervised_slots_are_those_inside_documents() -> None:
    drafter, _ = make_drafter("dflash", max_anchors=4096)
    row = make_row(drafter, 1024, 64, prompt=16)
    work = workload_of(row)
    starts = row.loss_mask.nonzero().flatten()
    target = starts[:, None] + torch.arange(1, 8)
    inside = (target < 1024) & (
        row.document_ids[target.clamp(max=1023)] == row.document_ids[starts][:, None]
    )
    assert work.supervised_slots(len(starts), 7) == pytest.approx(int(inside.sum()), rel=0.02)


@pytest.mark.parametrize("number_format", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("compares", [False, True], ids=["ce", "kl"])
def test_a_tile_of_the_vocabulary_holds_what_is_planned(
    compares: bool, number_format: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where tiles are large, as on an accelerator, they are most of what a step adds at once."""
    rows, columns = 512, 4096
    size = number_format.itemsize
    monkeypatch.setitem(partition._TILE_BYTES, "cpu", size * rows * columns)
    head = torch.randn(4 * columns, 64).to(number_format)
    x, labels = head[:rows].clone(), torch.arange(rows)
    with LiveBytes() as live:
        if compares:
            partition.expectation(x, head, head)
        else:
            partition.partition(x.requires_grad_(), head, labels)
    planned = rows * columns * BYTES_PER_LOGIT[size][compares]
    assert live.peak == pytest.approx(planned, rel=0.1)

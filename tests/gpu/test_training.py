"""What only a GPU shows: kernels, gradients, compiled graphs, waits. `pytest -m gpu tests/gpu`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from algorithms.rows import make_batch
from algorithms.test_every_algorithm import NAMES, build, teacher
from attention.packings import RULES, random_inputs, random_layout
from speculators.algorithms.base import StepContext
from speculators.attention.backend import prepare_attention
from speculators.attention.layout import MaskRule
from speculators.config.schema import AdamWConfig, AttentionBackend, Precision
from speculators.modules.compiling import fused, num_graphs
from speculators.training.optimizers import build_optimizers
from speculators.training.ranks import Ranks
from speculators.training.spread import Replicated
from speculators.training.step import Stepper

pytestmark = pytest.mark.gpu


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", 0)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("seed", [2, 3])
def test_flex_equals_the_structured_attention(
    seed: int, rule: MaskRule, cuda: torch.device
) -> None:
    layout = random_layout(seed, max_tokens=300)
    inputs = random_inputs(layout, heads=4, kv_heads=2, dim=64, dtype=torch.float32)
    found: list[list[torch.Tensor]] = []
    for backend, device in ((AttentionBackend.flex, cuda), (AttentionBackend.sdpa, "cpu")):
        tensors = [x.detach().to(device).requires_grad_() for x in inputs]
        attend = prepare_attention(layout, rule, backend, device, gradients=True)
        out = attend(*tensors)
        out.square().sum().backward()
        found.append([out.detach().cpu(), *(x.grad.cpu() for x in tensors if x.grad is not None)])
    assert len(found[0]) == len(found[1]) == 6
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_trains_as_on_the_cpu(name: str, cuda: torch.device) -> None:
    moved = []
    for device in (torch.device("cpu"), cuda):
        drafter = build(name, num_layers=2).to(device)
        report = stepper(drafter, device).run([make_batch((24, 16))], 1, 0, 1.0)
        moved.append((report.gradient_norm, [p.detach().cpu() for p in drafter.parameters()]))
    (expected, weights), (norm, ours) = moved
    assert norm == pytest.approx(expected, rel=2e-3)
    for a, b in zip(ours, weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_no_step_waits_for_the_device(name: str, cuda: torch.device) -> None:
    drafter = build(name, num_layers=2).to(cuda)
    runner = stepper(drafter, cuda)
    for step in range(2):  # kernels are compiled and memory is found
        assert runner.run([make_batch((24, 16))], 1, step, 1.0).moved
    torch.cuda.set_sync_debug_mode("error")
    try:
        report = runner.run([make_batch((24, 16))], 1, 2, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert report.moved


def test_rows_of_one_length_are_compiled_once(cuda: torch.device) -> None:
    """However many blocks they have room for."""
    drafter, seen = build("dflash", num_layers=3, max_anchors=16).to(cuda).train(), []
    for step, documents in enumerate([(24, 16), (4, 36), (40,), (20, 20), (3, 3, 34)]):
        with fused(True):
            output = drafter.compute_loss(
                make_batch(documents).to(cuda), teacher().to(cuda), StepContext(0, step)
            )
            output.loss_sum.backward()
        seen.append(num_graphs())
    assert seen[0] > 0
    assert len(set(seen)) == 1


def stepper(drafter: Any, device: torch.device) -> Stepper:
    return Stepper(
        drafter.train(),
        teacher().to(device),
        build_optimizers(drafter.trainable_parameters(), AdamWConfig(lr=0.01)),
        device,
        Precision.float32,
        1.0,
        0,
        Ranks(),
        Replicated(drafter, Ranks()),
    )

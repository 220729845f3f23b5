"""One step: rows and accumulation add up exactly, and what is not finite changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from speculators.algorithms.base import Output, StepContext
from speculators.config.schema import AdamWConfig, Precision
from speculators.data.types import PackedBatch
from speculators.training.optimizers import build_optimizers
from speculators.training.ranks import Ranks
from speculators.training.spread import Replicated
from speculators.training.step import Stepper, add_outputs, autocast
from training.toy import TOY, ToyDrafter, ToyRows, row_of, seed_everything, toy_drafter


class AllStarts(ToyDrafter):
    """Trains on every start and draws nothing, so that rows have one well-defined gradient."""

    def compute_loss(self, batch: PackedBatch, teacher: Any, step: StepContext) -> Output:
        starts = self.start_candidates(batch).nonzero().flatten()
        logits = self._logits(batch, starts)[:, 0]
        losses = torch.nn.functional.cross_entropy(
            logits, batch.input_ids[starts + 1], reduction="none"
        )
        return Output(losses.sum(), torch.tensor(float(len(starts))))


def all_starts() -> AllStarts:
    drafter = toy_drafter()
    drafter.__class__ = AllStarts
    assert isinstance(drafter, AllStarts)
    return drafter


def stepper(drafter: ToyDrafter, clip_norm: float | None = None) -> Stepper:
    optimizers = build_optimizers(
        drafter.trainable_parameters(), AdamWConfig(lr=0.1, eps=1.0, weight_decay=0.0)
    )
    return Stepper(
        drafter,
        TOY.head,
        optimizers,
        torch.device("cpu"),
        Precision.auto,
        clip_norm,
        0,
        Ranks(),
        Replicated(drafter, Ranks()),
    )


def weights(drafter: ToyDrafter) -> list[torch.Tensor]:
    return [p.detach().clone() for p in drafter.trainable_parameters().values()]


def mean_gradient(drafter: AllStarts, rows: Sequence[PackedBatch]) -> list[torch.Tensor]:
    """Oracle: one graph over all rows, divided before the backward pass."""
    outputs = [drafter.compute_loss(row, None, StepContext(0, 0)) for row in rows]
    total, divisor = sum(o.loss_sum for o in outputs), sum(o.divisor for o in outputs)
    parameters = list(drafter.trainable_parameters().values())
    assert isinstance(total, torch.Tensor)
    return list(torch.autograd.grad(total / divisor, parameters, allow_unused=True))


def test_two_rows_in_one_step_are_one_batch_of_both() -> None:
    rows = [row_of(torch.arange(n) % 17) for n in (9, 21)]
    expected = mean_gradient(all_starts(), rows)
    drafter = all_starts()
    before = weights(drafter)
    report = stepper(drafter).run(iter(rows), len(rows), 0, 1.0)
    assert report.gradient_norm == pytest.approx(
        float(torch.stack([g.norm() for g in expected if g is not None]).norm()), rel=1e-5
    )
    for old, new, gradient in zip(before, weights(drafter), expected, strict=True):
        if gradient is not None:  # the first AdamW step moves by lr * g / (|g| + eps)
            torch.testing.assert_close(new, old - 0.1 * gradient / (gradient.abs() + 1.0))
    assert (report.num_tokens, report.num_supervised) == (30, 24)


def test_the_order_of_rows_does_not_matter() -> None:
    rows = [row_of(torch.arange(n) % 17) for n in (9, 21)]
    moved = []
    for order in (rows, rows[::-1]):
        drafter = all_starts()
        stepper(drafter).run(order, len(order), 0, 1.0)
        moved.append(weights(drafter))
    for a, b in zip(*moved, strict=True):
        torch.testing.assert_close(a, b)


def test_clipping_scales_the_gradient_and_reports_the_norm_before_it() -> None:
    rows = [row_of(torch.arange(20) % 17)]
    gradients = mean_gradient(all_starts(), rows)
    norm = float(torch.stack([g.norm() for g in gradients if g is not None]).norm())
    drafter = all_starts()
    before = weights(drafter)
    report = stepper(drafter, clip_norm=norm / 2).run(rows, len(rows), 0, 1.0)
    assert report.gradient_norm == pytest.approx(norm, rel=1e-5)
    for old, new, gradient in zip(before, weights(drafter), gradients, strict=True):
        if gradient is not None:
            half = gradient / 2
            torch.testing.assert_close(new, old - 0.1 * half / (half.abs() + 1.0))


def test_a_row_without_supervised_tokens_adds_nothing() -> None:
    full, empty = row_of(torch.arange(20) % 17), row_of(torch.arange(20) % 17, supervised_from=99)
    moved = []
    for rows in ([full], [full, empty]):
        drafter = all_starts()
        stepper(drafter).run(rows, len(rows), 0, 1.0)
        moved.append(weights(drafter))
    assert all(map(torch.equal, *moved))


def test_a_step_without_supervised_tokens_changes_nothing() -> None:
    seed_everything()
    drafter = toy_drafter()
    before = weights(drafter)
    empty = row_of(torch.arange(20) % 17, supervised_from=99)
    report = stepper(drafter).run([empty], 1, 0, 1.0)
    assert not report.moved
    assert report.bad_tensor is None
    assert report.gradient_norm is None
    assert all(map(torch.equal, before, weights(drafter)))


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("states", "loss"),
        ("weight", "weight layers.1.weight"),
        ("gradient", "gradient of fc.weight"),
    ],
)
def test_what_is_not_finite_is_named_and_changes_nothing(place: str, name: str) -> None:
    seed_everything()
    drafter = toy_drafter()
    runner = stepper(drafter)
    row = ToyRows().row(0, 0)
    if place == "states":
        row.aux[:] = float("inf")
    if place == "weight":
        with torch.no_grad():
            drafter.layers[1].weight[0, 0] = float("nan")  # pyright: ignore[reportIndexIssue]
    if place == "gradient":
        drafter.fc.weight.register_hook(lambda g: torch.full_like(g, float("nan")))
    before = weights(drafter)
    report = runner.run([row], 1, 0, 1.0)
    assert report.bad_tensor == name
    assert not report.moved
    for old, new in zip(before, weights(drafter), strict=True):
        assert torch.equal(old, new) or old.isnan().any()
    states = runner.optimizers[0].state.values()
    assert not any(bool(value.any()) for state in states for value in state.values())
    assert all(p.grad is None for p in drafter.parameters())


def test_each_row_of_a_step_has_its_own_random_numbers() -> None:
    seen: list[StepContext] = []

    class Watching(AllStarts):
        def compute_loss(self, batch: PackedBatch, teacher: Any, step: StepContext) -> Output:
            seen.append(step)
            return super().compute_loss(batch, teacher, step)

    drafter = all_starts()
    drafter.__class__ = Watching
    stepper(drafter).run([row_of(torch.arange(9))] * 2, 2, 7, 1.0)
    assert seen == [StepContext(0, 7, 0), StepContext(0, 7, 1)]


def test_precision_decides_the_arithmetic() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    x = torch.ones(2, 2)
    for precision, dtype in (
        (Precision.auto, torch.float32),
        (Precision.float32, torch.float32),
        (Precision.bfloat16, torch.bfloat16),
    ):
        with autocast(precision, cpu):
            assert (x @ x).dtype is dtype
    if torch.cuda.is_available():
        assert autocast(Precision.auto, cuda)._enabled


def test_metrics_of_rows_add_up_also_when_one_has_fewer() -> None:
    one = torch.tensor(1.0)
    total = add_outputs(
        Output(one, one, {"a": one, "b": one}, {"a": one, "b": one}),
        Output(one * 2, one * 3, {"a": one * 4}, {"a": one * 5}),
    )
    assert (total.loss_sum, total.divisor) == (3.0, 4.0)
    assert (total.sums, total.counts) == ({"a": 5.0, "b": 1.0}, {"a": 6.0, "b": 1.0})

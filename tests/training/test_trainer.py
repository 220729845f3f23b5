"""The loop: what it learns, counts, skips and refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.config.schema import BestMetric, Precision
from speculators.data.types import PackedBatch
from speculators.errors import ConfigError, DataError, SpeculatorsError
from speculators.training import accounts
from training.toy import ToyRows, toy_config, toy_drafter, toy_trainer


def lines(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    text = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["kind"] == kind]


def test_it_learns(tmp_path: Path) -> None:
    config = toy_config(tmp_path, max_steps=60, log_every_steps=20)
    config.optimizer.lr = 0.05
    result = toy_trainer(tmp_path, config).fit()
    losses = [line["loss"] for line in lines(tmp_path, "train")]
    assert losses[-1] < losses[0] - 1
    assert result.best_value is not None
    assert result.best_value > 1.5


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_bfloat16_arithmetic_keeps_fp32_masters(tmp_path: Path, ema_decay: float | None) -> None:
    drafter = toy_drafter()
    for parameter in drafter.trainable_parameters().values():
        parameter.data = parameter.data.bfloat16()
    config = toy_config(tmp_path, precision=Precision.bfloat16, ema_decay=ema_decay)
    toy_trainer(tmp_path, config, drafter=drafter).fit()
    assert {p.dtype for p in drafter.trainable_parameters().values()} == {torch.float32}
    assert all(line["loss"] > 0 for line in lines(tmp_path, "train"))


def test_the_lines_of_a_run(tmp_path: Path) -> None:
    config = toy_config(tmp_path, log_every_steps=3, accumulation_steps=2, epochs=2)
    result = toy_trainer(tmp_path, config).fit()
    train = lines(tmp_path, "train")
    assert [(line["step"], line["epoch"]) for line in train] == [(3, 0), (6, 1)]
    assert [line["step"] for line in lines(tmp_path, "validation")] == [3, 6]
    assert list(train[0]) == [
        "step",
        "epoch",
        "kind",
        "loss",
        "gradient_norm",
        "accuracy",
        "learning_rate",
        "skipped_steps",
        "tokens",
        "supervised_tokens",
    ]
    assert train[-1]["tokens"] == result.tokens == 179
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [(line["step"], line["kind"]) for line in timing] == [
        (3, "step"),
        (3, "validation"),
        (3, "checkpoint"),
        (6, "step"),
        (6, "validation"),
        (6, "checkpoint"),
    ]


def test_a_step_with_nan_is_skipped_counted_and_named(tmp_path: Path) -> None:
    rows = ToyRows(poison=lambda epoch, row: (epoch, row) == (0, 2))
    result = toy_trainer(tmp_path, rows=rows).fit()
    assert result.steps == 10
    (bad,) = lines(tmp_path, "bad_step")
    assert (bad["step"], bad["tensor"]) == (3, "loss")
    assert bad["samples"] == list(ToyRows().row(0, 2).sample_ids)
    assert [line["skipped_steps"] for line in lines(tmp_path, "train")] == [0, 1, 1, 1, 1]
    assert all(line["loss"] is not None for line in lines(tmp_path, "train"))


def test_only_nan_stops_the_run(tmp_path: Path) -> None:
    rows = ToyRows(poison=lambda epoch, row: row >= 2)
    with pytest.raises(SpeculatorsError) as error:
        toy_trainer(tmp_path, toy_config(tmp_path, max_bad_steps=3), rows=rows).fit()
    (sample,) = ToyRows().row(0, 4).sample_ids
    assert str(error.value) == (
        "training stopped after step 5: 3 steps in a row were NaN or infinite "
        "(training.max_bad_steps), first: loss; lower optimizer.lr, or look at samples " + sample
    )


def test_bad_steps_are_counted_across_starts(tmp_path: Path) -> None:
    rows = ToyRows(poison=lambda epoch, row: row >= 2)
    config = toy_config(tmp_path, max_bad_steps=3, checkpoint_every_steps=1)
    for _ in range(2):  # the second start has two bad steps behind it and fails at the first
        rows.taken.clear()
        with pytest.raises(SpeculatorsError, match=r"^training stopped after step 5: 3 steps"):
            toy_trainer(tmp_path, config, rows=rows).fit()
    assert rows.taken == [(0, 4)]


def test_only_the_rows_that_are_left_are_asked_for(tmp_path: Path) -> None:
    rows = ToyRows()
    toy_trainer(tmp_path, toy_config(tmp_path, max_steps=7), rows=rows).fit()
    rows.taken.clear()
    toy_trainer(tmp_path, toy_config(tmp_path, max_steps=9), rows=rows).fit()
    assert rows.taken == [(1, 2), (1, 3)]


def test_a_loader_that_ends_early_is_an_error(tmp_path: Path) -> None:
    class Short(ToyRows):
        def iterate(self, epoch: int, first_row: int, **ranks: int) -> Iterator[PackedBatch]:
            return iter(list(super().iterate(epoch, first_row, **ranks))[:-1])

    with pytest.raises(DataError) as error:
        toy_trainer(tmp_path, rows=Short()).fit()
    assert str(error.value) == (
        "epoch 0 was to have 5 packed rows, but the loader ended before; were hidden states "
        "removed while training?"
    )


def test_the_loader_is_told_to_stop(tmp_path: Path) -> None:
    closed: list[int] = []

    class Watched(ToyRows):
        def iterate(self, epoch: int, first_row: int, **ranks: int) -> Iterator[PackedBatch]:
            try:
                yield from super().iterate(epoch, first_row, **ranks)
            finally:
                closed.append(epoch)

    toy_trainer(tmp_path, toy_config(tmp_path, max_steps=2), rows=Watched()).fit()
    assert closed == [0]


def test_a_best_metric_nobody_measures_is_refused(tmp_path: Path) -> None:
    config = toy_config(tmp_path, best_metric=BestMetric.loss)
    with pytest.raises(ConfigError) as error:
        toy_trainer(tmp_path, config, validate=lambda d: {"acceptance_length": 1.0}).fit()
    assert str(error.value) == (
        "training.best_metric=loss: validation measures only acceptance_length; choose one of those"
    )


def test_steps_without_supervision_count(tmp_path: Path) -> None:
    class Empty(ToyRows):
        def row(self, epoch: int, number: int) -> PackedBatch:
            row = super().row(epoch, number)
            row.loss_mask[:] = False
            return row

    drafter = toy_drafter()
    before = {n: p.detach().clone() for n, p in drafter.named_parameters()}
    toy_trainer(tmp_path, drafter=drafter, rows=Empty(), validate=None).fit()
    assert all(torch.equal(p, before[n]) for n, p in drafter.named_parameters())
    train = lines(tmp_path, "train")
    assert [line["step"] for line in train] == [2, 4, 6, 8, 10]
    assert {line["loss"] for line in train} == {None}
    assert {line["gradient_norm"] for line in train} == {None}


def test_numbers_that_are_read_a_step_later_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator, which is one step behind the host."""
    rows = ToyRows(poison=lambda epoch, row: (epoch, row) in ((0, 2), (0, 3), (1, 1)))
    settings = {"accumulation_steps": 1, "log_every_steps": 3, "ema_decay": 0.9}
    toy_trainer(tmp_path / "now", toy_config(tmp_path / "now", **settings), rows=rows).fit()
    monkeypatch.setattr(accounts, "steps_ahead", lambda device: 1)
    toy_trainer(tmp_path / "later", toy_config(tmp_path / "later", **settings), rows=rows).fit()
    now, later = (tmp_path / name / "metrics.jsonl" for name in ("now", "later"))
    assert len(lines(tmp_path / "now", "bad_step")) == 3
    assert now.read_text() == later.read_text()


def test_a_lost_run_is_noticed_a_step_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "steps_ahead", lambda device: 1)
    rows = ToyRows(poison=lambda epoch, row: row >= 1)
    trainer = toy_trainer(
        tmp_path, toy_config(tmp_path, max_bad_steps=3, log_every_steps=100), rows=rows
    )
    with pytest.raises(SpeculatorsError, match=r"^training stopped after step 4: 3 steps in a row"):
        trainer.fit()
    assert rows.taken[-1] == (0, 4)

"""Several processes train as one does: same losses, same weights, same checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speculators.config.schema import (
    AdamWConfig,
    Config,
    LauncherConfig,
    MuonConfig,
    OptimizerConfig,
)
from speculators.data.types import PackedBatch
from speculators.errors import HiddenStateOutageError
from speculators.testing.distributed import run_distributed
from speculators.training.ranks import Ranks
from training.toy import ToyRows, toy_config, toy_drafter, toy_trainer

ROWS = 5  # odd: in the last step of an epoch one of two ranks has nothing


@dataclass
class DryRows(ToyRows):
    """States run out for good at one row."""

    dry_at: tuple[int, int] | None = None

    def iterate(self, epoch: int, first_row: int, **ranks: int) -> Iterator[PackedBatch]:
        for row in super().iterate(epoch, first_row, **ranks):
            if self.taken[-1] == self.dry_at:
                raise HiddenStateOutageError(f"no states for row {self.dry_at}")
            yield row


def config_of(folder: Path, launcher: str, optimizer: OptimizerConfig, **training: Any) -> Config:
    config = toy_config(folder, optimizer=optimizer, **training)
    name, _, offload = launcher.partition(" ")
    return replace(config, launcher=LauncherConfig(name=name, cpu_offload=bool(offload)))


def train(ranks: Ranks, config: Config, dry_at: tuple[int, int] | None = None) -> None:
    """One process of a run."""
    drafter = toy_drafter()
    drafter.config = replace(drafter.config, dropout=0.0)  # it depends on who draws first
    rows = DryRows(num_rows=ROWS, dry_at=dry_at)
    trainer = toy_trainer(Path(config.output_dir), config, drafter=drafter, rows=rows, ranks=ranks)
    if dry_at is None:
        trainer.fit()
        return
    with pytest.raises(HiddenStateOutageError, match=r"no states for row .*Saved checkpoints/"):
        trainer.fit()


def numbers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(run: Path, reference: Path, tolerance: float = 1e-6) -> None:
    """Equal but for the order in which fp32 gradients were added."""
    ours, theirs = numbers(run), numbers(reference)
    assert len(ours) == len(theirs) > 5
    for line, expected in zip(ours, theirs, strict=True):
        assert line.pop("kind") == expected.pop("kind")
        assert line == pytest.approx(expected, rel=5 * tolerance, abs=1e-7)
        assert line["loss"] == pytest.approx(expected["loss"], rel=tolerance)
    found, wanted = (
        load_file(folder / "checkpoints" / "checkpoint_best" / "model.safetensors")
        for folder in (run, reference)
    )
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].float(), value.float(), rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("launcher", "optimizer", "ema"),
    [
        ("ddp", AdamWConfig(lr=0.01), None),
        ("fsdp", AdamWConfig(lr=0.01), 0.9),
        ("fsdp", MuonConfig(lr=0.01, adamw_lr=0.01), None),
        ("fsdp offloaded", AdamWConfig(lr=0.01), 0.9),
    ],
    ids=["ddp", "fsdp with average", "fsdp with muon", "fsdp offloaded"],
)
def test_two_ranks_are_two_rows_of_one_process(
    launcher: str, optimizer: OptimizerConfig, ema: float | None, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"epochs": 3, "ema_decay": ema, "log_every_steps": 1}
    alone = config_of(tmp_path / "one", "single", optimizer, accumulation_steps=2, **settings)
    train(Ranks(), alone)
    run_distributed(train, 2, config_of(tmp_path / "two", launcher, optimizer, **settings))
    # Muon makes its updates orthogonal in bf16, which magnifies the last bits of gradients.
    tolerance = 1e-4 if isinstance(optimizer, MuonConfig) else 1e-6
    assert_same(tmp_path / "two", tmp_path / "one", tolerance)
    checkpoint = tmp_path / "two" / "checkpoints" / "checkpoint_best"
    assert {p.name for p in checkpoint.glob("rng*")} == {
        "rng_state_rank0.pt",
        "rng_state_rank1.pt",
    }


@pytest.mark.parametrize("launcher", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_a_run_goes_on_with_another_number_of_ranks(launcher: str, tmp_path: Path) -> None:
    """2 ranks, 1 process, 2 ranks: stopped twice by states that ran out on one rank."""
    optimizer, settings = AdamWConfig(lr=0.01), {"epochs": 4, "log_every_steps": 1}
    train(
        Ranks(),
        config_of(tmp_path / "whole", "single", optimizer, **settings, accumulation_steps=2),
    )
    folder = tmp_path / "stopped"
    two = config_of(folder, launcher, optimizer, **settings)
    one = config_of(folder, "single", optimizer, **settings, accumulation_steps=2)
    run_distributed(train, 2, two, (1, 3))
    train(Ranks(), one, (2, 2))
    run_distributed(train, 2, two)
    assert_same(folder, tmp_path / "whole")


def test_the_same_number_of_ranks_resumes_bit_for_bit(tmp_path: Path) -> None:
    optimizer, settings = AdamWConfig(lr=0.01), {"epochs": 3, "log_every_steps": 2}
    run_distributed(train, 2, config_of(tmp_path / "whole", "ddp", optimizer, **settings))
    stopped = config_of(tmp_path / "stopped", "ddp", optimizer, **settings)
    run_distributed(train, 2, stopped, (1, 3))
    run_distributed(train, 2, stopped)
    whole, again = (tmp_path / name / "metrics.jsonl" for name in ("whole", "stopped"))
    assert whole.read_text() == again.read_text()

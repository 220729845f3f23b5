"""Somebody examines the drafter beside training: when, in what state, and without a trace."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speculators.algorithms.base import Drafter
from speculators.conversion.folders import Content
from speculators.conversion.integrity import WEIGHTS_FILE
from speculators.errors import CheckpointError
from speculators.training.certify import Accompany
from speculators.training.checkpoint import rng_file
from speculators.training.state import is_complete
from training.toy import toy_config, toy_trainer


class Examiner:
    """Writes a file into checkpoints, and leaves every random state and mode in disorder."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def __call__(self, drafter: Drafter[Any], content: Content | None) -> Accompany:
        assert not drafter.training
        assert not torch.is_grad_enabled()
        random.random()
        np.random.rand()
        torch.rand(3)
        drafter.train()
        self.places.append("start" if content is None else content.folder.name)
        return self.accompany

    def accompany(self, folder: Path) -> None:
        assert (folder / WEIGHTS_FILE).exists()
        (folder / "parity.json").write_text("{}")


def run(folder: Path, **arguments: Any) -> None:
    config = toy_config(folder, checkpoint_every_steps=4)
    toy_trainer(folder, config, **arguments).fit()


def test_it_is_asked_before_the_first_step_and_at_every_checkpoint(tmp_path: Path) -> None:
    examiner = Examiner()
    run(tmp_path, certify=examiner)
    assert examiner.places == ["start", "step-4", "0", "step-8", "1"]


def test_training_does_not_notice(tmp_path: Path) -> None:
    for name, arguments in (("alone", {}), ("watched", {"certify": Examiner()})):
        run(tmp_path / name, **arguments)
    for name in ("metrics.jsonl", "checkpoints/1/" + WEIGHTS_FILE, f"checkpoints/1/{rng_file(0)}"):
        alone, watched = (tmp_path / run / name for run in ("alone", "watched"))
        assert alone.read_bytes() == watched.read_bytes()


def test_what_it_writes_may_change_later(tmp_path: Path) -> None:
    run(tmp_path, certify=Examiner())
    folder = tmp_path / "checkpoints" / "1"
    assert is_complete(folder)
    (folder / "parity.json").write_text('{"passed": true}')
    assert is_complete(folder)


def test_a_run_that_goes_on_does_not_start_again(tmp_path: Path) -> None:
    run(tmp_path, certify=Examiner())
    again = Examiner()
    config = toy_config(tmp_path, checkpoint_every_steps=4, epochs=3)
    config.training.allow_changes = ["training.epochs"]
    toy_trainer(tmp_path, config, certify=again).fit()
    assert again.places == ["step-12", "2"]


def test_an_error_before_the_first_step_stops_the_run(tmp_path: Path) -> None:
    def refuse(drafter: Drafter[Any], content: Content | None) -> Accompany:
        raise CheckpointError("doctor: no")

    with pytest.raises(CheckpointError, match=r"doctor: no"):
        run(tmp_path, certify=refuse)
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "metrics.jsonl").exists()

"""A process that does not get on says so, once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from speculators.data.types import PackedBatch
from speculators.training.watchdog import Watchdog
from training.toy import ToyRows, toy_config, toy_trainer


def wait_for(said: list[str]) -> None:
    end = time.monotonic() + 20
    while not said and time.monotonic() < end:
        time.sleep(0.01)


def test_a_stalled_process_names_itself_and_its_samples() -> None:
    said: list[str] = []
    with Watchdog(3, 0.1, said.append) as watchdog:
        watchdog.at("training in step 7", lambda: ["a", "b", "c", "d", "e"])
        wait_for(said)
        time.sleep(0.3)
    assert len(said) == 1
    assert said[0].startswith("rank 3 has been training in step 7 (a, b, c and 2 more) for ")


@dataclass
class LateRows(ToyRows):
    """The first row is not there before somebody has asked what is waited for."""

    asked: threading.Event = field(default_factory=threading.Event)

    def iterate(self, epoch: int, first_row: int, **ranks: int) -> Iterator[PackedBatch]:
        assert self.asked.wait(20)
        yield from super().iterate(epoch, first_row, **ranks)

    def awaited(self) -> list[str]:
        self.asked.set()
        return ["late"]


def test_a_run_that_waits_for_states_names_their_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(tmp_path)
    config.launcher.stall_seconds = 0.2
    toy_trainer(tmp_path, config, rows=LateRows(), validate=None).fit()
    assert "rank 0 has been waiting for rows of step 0 (late) for " in capsys.readouterr().err


def test_nothing_is_said_while_things_move_or_between_them() -> None:
    said: list[str] = []
    with Watchdog(0, 5.0, said.append) as watchdog:
        for step in range(20):
            watchdog.at(f"training in step {step}")
        watchdog.at("")
    with Watchdog(0, None, said.append) as watchdog:
        watchdog.at("training")
    assert said == []

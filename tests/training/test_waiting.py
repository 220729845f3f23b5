"""The gauges of a training that waits, and the advice that comes when it starves."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from speculators.console import open_console
from speculators.data.types import PackedBatch
from speculators.training import waiting
from speculators.training.waiting import Waiting, waiting_text
from training.toy import ToyRows, toy_config, toy_trainer


class Fed(ToyRows):
    """Rows from servers whose totals grow as they are read."""

    received = 0.0

    def gauges(self) -> dict[str, float]:
        return {
            "queue_ready": 3,
            "queue_samples": 16,
            "in_flight": 8,
            "received_tokens": self.received,
        }


def test_shares_and_rates_are_of_the_time_between_two_reports() -> None:
    rows = Fed()
    watched = Waiting(rows)
    for waited in (0.5, 0.5):
        watched.add(2.0, waited, first=False)
    rows.received = 400.0
    found = watched.report()
    assert found["idle_share"] == pytest.approx(0.25)
    assert found["wait_seconds"] == 1.0
    assert found["server_tokens_per_second"] == pytest.approx(100.0)
    assert waiting_text(found) == "waits 25%  queue 3/16  8 requests  servers 100 tokens/s"
    watched.add(1.0, 0.0, first=False)
    rows.received = 500.0
    found = watched.report()
    assert (found["idle_share"], found["server_tokens_per_second"]) == (0.0, 100.0)


def test_advice_comes_when_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: clock[0])
    watched = Waiting(Fed())

    def interval(seconds: float, waited: float, *, first: bool = False) -> str | None:
        clock[0] += seconds
        watched.add(seconds, waited, first=first)
        return watched.advice(watched.report())

    assert interval(60.0, 50.0, first=True) is None  # nobody can spare the first row
    assert interval(100.0, 9.0) is None  # 9 %
    assert interval(10.0, 6.0) is None  # not for long
    said = interval(20.0, 15.0)
    assert said == "training waits 75% of the time for hidden states: there is nothing to change"
    assert interval(100.0, 90.0) is None  # said already
    assert interval(600.0, 500.0) is not None


class Slow(Fed):
    def iterate(self, epoch: int, first_row: int, **ranks: int) -> Iterator[PackedBatch]:
        for row in super().iterate(epoch, first_row, **ranks):
            time.sleep(0.02)
            self.received += 50.0
            yield row


def test_a_starving_trainer_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_STARVING_SECONDS", 0.01)
    screen = io.StringIO()
    console = open_console(file=screen, width=300)
    config = toy_config(tmp_path, log_every_steps=1)
    toy_trainer(tmp_path, config, rows=Slow(), console=console).fit()
    lines = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert all(line["wait_seconds"] >= 0.02 for line in steps)
    assert all(0 < line["idle_share"] < 1 for line in steps)
    assert all(line["server_tokens_per_second"] > 0 for line in steps)
    assert all((line["queue_samples"], line["in_flight"]) == (16, 8) for line in steps)
    text = screen.getvalue()
    assert text.count("of the time for hidden states: there is nothing to change") == 1
    assert "queue 3/16  8 requests  servers " in text

from __future__ import annotations

import io
import re

import pytest

from speculators.console import open_console
from speculators.training import progress
from speculators.training.progress import TrainingProgress


def test_plain_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    screen = io.StringIO()
    with TrainingProgress(100, 0, open_console(file=screen, width=200)) as shown:
        for step in range(1, 31):
            clock[0] += 2
            shown.advance(step)
            shown.show({"kind": "train", "loss": 3.0 - step / 100, "block_acceptance_length": 1.5})
        shown.show({"kind": "validation", "loss": 9.0, "acceptance_length": 1.25})
        shown.say("a line [for] people")
    lines = [re.sub(" +", " ", line).strip() for line in screen.getvalue().splitlines()]
    assert lines[0] == ("step 5/100 loss 2.950 tau 1.50 (blocks) 2.00 s/step 3:10 left")
    assert lines[-2] == (
        "step 30/100 loss 2.700 tau 1.50 (blocks) validation loss 9.000 tau 1.25 (walk) "
        "2.00 s/step 2:20 left"
    )
    assert lines[-1] == "a line [for] people"
    assert len(lines) == 8


def test_a_training_line_after_a_validation_keeps_the_order() -> None:
    screen = io.StringIO()
    with TrainingProgress(100, 0, open_console(file=screen, width=200)) as shown:
        for kind, loss in (("train", 3.0), ("validation", 9.0), ("train", 2.0)):
            shown.show({"kind": kind, "loss": loss})
    assert "loss 2.000  validation loss 9.000" in screen.getvalue().splitlines()[-1]


def test_a_terminal_gets_a_bar() -> None:
    screen = io.StringIO()
    console = open_console(file=screen, width=120, force_terminal=True)
    with TrainingProgress(20, 10, console) as shown:
        shown.advance(20)
        shown.show({"kind": "train", "loss": 1.5})
    assert "20/20" in screen.getvalue()
    assert "loss 1.500" in screen.getvalue()

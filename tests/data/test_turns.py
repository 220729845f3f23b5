"""Two processes that need the same prepared data: one makes it, the other waits and finds it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data.scripted import Scripted
from speculators.config.composition import compose
from speculators.config.schema.data import RegenerateConfig
from speculators.data.dialogue import Question
from speculators.data.prepared import PreparedData
from speculators.data.turns import one_at_a_time

HOLDER = """
import sys, time
from pathlib import Path
from speculators.data.turns import one_at_a_time
with one_at_a_time(Path(sys.argv[1])):
    print("inside", flush=True)
    time.sleep(600)
"""


def test_equal_preparations_are_made_once(
    run: Callable[..., PreparedData],
    write_rows: Callable[..., Path],
    rows: list[Any],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def slowly(question: Question) -> list[int]:
        begun.set()
        assert may_go_on.wait(60)
        return [1, 2, 3]

    answerer = Scripted(slowly)
    settings = {"regenerate": RegenerateConfig(enabled=True), "answerer": answerer}
    path = write_rows(rows)
    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, path, **settings)
        assert begun.wait(60)
        second = pool.submit(run, path, **settings)
        while "waiting" not in caplog.text:
            time.sleep(0.01)
        may_go_on.set()
        made, found = first.result(60), second.result(60)
    assert (made.reused, found.reused) == (False, True)
    assert made.folder == found.folder
    assert len(answerer.asked) == 40
    assert [entry.name for entry in made.folder.parent.iterdir()] == [made.folder.name]


def test_other_preparations_of_the_same_answers_wait_for_them(
    run: Callable[..., PreparedData], write_rows: Callable[..., Path], rows: list[Any]
) -> None:
    answerer = Scripted(lambda question: list(range(40, 50)))
    settings = {"regenerate": RegenerateConfig(enabled=True), "answerer": answerer}
    path = write_rows(rows)
    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(run, path, min_supervised_tokens=count, **settings) for count in (2, 3, 4)
        ]
        folders = {job.result(60).folder for job in jobs}
    assert len(folders) == 3
    assert len(answerer.asked) == 40


def test_the_turn_of_a_killed_process_is_over(tmp_path: Path) -> None:
    path = tmp_path / "made"
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "inside\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with one_at_a_time(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_everybody_gets_a_turn_and_nobody_shares_one(tmp_path: Path) -> None:
    inside, most = 0, 0

    def enter(_: int) -> None:
        nonlocal inside, most
        for _ in range(20):
            with one_at_a_time(tmp_path / "made"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert most == 1
    assert list(tmp_path.iterdir()) == []


def test_data_may_have_a_seed_of_their_own() -> None:
    assert compose("train", ["seed=3"]).data_seed == 3
    assert compose("train", ["seed=3", "data.seed=0"]).data_seed == 0

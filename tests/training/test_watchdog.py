"""A process that does not get on says so, once."""

from __future__ import annotations

import time

from speculators.training.watchdog import Watchdog


def wait_for(said: list[str]) -> None:
    end = time.monotonic() + 20
    while not said and time.monotonic() < end:
        time.sleep(0.01)


def test_a_stalled_process_names_itself_and_its_samples() -> None:
    said: list[str] = []
    with Watchdog(3, 0.1, said.append) as watchdog:
        watchdog.at("training in step 7", ["a", "b", "c", "d", "e"])
        wait_for(said)
        time.sleep(0.3)
    assert len(said) == 1
    assert said[0].startswith("rank 3 has been training in step 7 (a, b, c and 2 more) for ")


def test_nothing_is_said_while_things_move_or_between_them() -> None:
    said: list[str] = []
    with Watchdog(0, 5.0, said.append) as watchdog:
        for step in range(20):
            watchdog.at(f"training in step {step}")
        watchdog.at("")
    with Watchdog(0, None, said.append) as watchdog:
        watchdog.at("training")
    assert said == []

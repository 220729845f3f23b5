"""The expected speed-up against a simulation, against decoding, and its recommendation."""

from __future__ import annotations

import numpy as np
import pytest

from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.best_k import CycleTimes, best_k, served_times

CHANCES = np.array([0.9, 0.8, 0.7, 0.6, 0.5])


def simulated(count: int, times: CycleTimes, tokens: int = 40_000) -> float:
    """Clock of plain decoding over that of drafting `count` tokens, token by token."""
    generator = np.random.default_rng(count)
    made, clock = 0, 0.0
    while made < tokens:
        accepted = 0
        while accepted < count and generator.random() < CHANCES[accepted]:
            accepted += 1
        made += accepted + 1
        clock += times.draft[count - 1] + times.verify[count - 1]
    return made * times.plain / clock


def test_the_formula_is_what_a_simulation_finds() -> None:
    times = CycleTimes(1, 10.0, (1.0, 1.5, 2.0, 2.5, 3.0), (10.5, 11.0, 12.0, 14.0, 17.0))
    found = best_k(np.cumprod(CHANCES).tolist(), times)
    for count, expected in enumerate(found.speedups, 1):
        assert simulated(count, times) == pytest.approx(expected, rel=0.01)
    assert found.recommended == 1 + int(np.argmax(found.speedups))


def test_fewer_tokens_where_more_gain_nothing_and_none_where_drafting_costs() -> None:
    flat = CycleTimes(1, 1.0, (0.1,) * 4, (1.0,) * 4)
    assert best_k([0.8, 0.001, 0.0, 0.0], flat).recommended == 1
    assert best_k([0.8, 0.7, 0.6, 0.5], flat).recommended == 4
    slow = CycleTimes(64, 1.0, (0.5,) * 4, (2.0, 3.0, 4.0, 5.0))
    found = best_k([0.8, 0.7, 0.6, 0.5], slow)
    assert max(found.speedups) < 1
    assert found.recommended == 0


def test_acceptance_of_fewer_tokens_is_a_prefix_where_each_is_drafted_after_the_last() -> None:
    generator = np.random.default_rng(0)
    runs = [[int((generator.random(5) < CHANCES).cumprod().sum()) for _ in range(200)]]
    whole = Acceptance.from_runs(runs, 5)
    fewer = Acceptance.from_runs([[min(run, 3) for run in runs[0]]], 3)
    assert fewer.per_position == whole.per_position[:3]


def test_a_servers_latencies_give_the_times_they_were_made_of() -> None:
    """Passes cost 2 ms and 0.1 ms a token, drafting 1 ms."""

    def passes(tokens: int) -> float:
        return 2.0 + 0.1 * tokens

    tau, count = 2.5, 3
    levels = [
        {
            "concurrency": c,
            "plain": {"inter_token_ms": {"mean": passes(c)}},
            "speculative": {
                "acceptance_length": tau,
                "inter_token_ms": {"mean": (1.0 + passes(c * (count + 1))) / tau},
            },
        }
        for c in (1, 4, 16)
    ]
    for times in served_times(levels, count):
        assert times.plain == pytest.approx(passes(times.batch_size) / 1e3)
        assert times.draft == pytest.approx([1e-3] * count)
        wanted = [passes(times.batch_size * n) / 1e3 for n in range(2, count + 2)]
        assert times.verify == pytest.approx(wanted)
    assert served_times(levels[:1], count) == []

"""A published row beside an evaluation: compared only where the two were made alike."""

from __future__ import annotations

from typing import Any

import pytest

from speculators.config.schema import ExpectedConfig, ExpectedResult
from speculators.evaluation.expected import against_published, expected_grid
from speculators.evaluation.tables import markdown

ROW = ExpectedConfig(
    source="somewhere",
    verifier="Qwen/Qwen3-8B",
    num_draft_tokens=4,
    max_new_tokens=64,
    suites={
        "mt_bench": ExpectedResult(
            num_prompts=80, acceptance_length=1.5, acceptance_per_position=[0.4, 0.1, 0.0, 0.0]
        )
    },
)


def measured(positions: list[float], **changes: Any) -> dict[str, Any]:
    settings = {"temperature": 0.0, "max_new_tokens": 64, "verifier": "/models/Qwen3-8B"}
    part = {
        "num_prompts": changes.pop("num_prompts", 80),
        "acceptance_length": 1 + sum(positions),
        "acceptance_length_ci95": [1.40, 1.46],
        "acceptance_per_position": positions,
    }
    return {"suites": {"mt_bench": part}, "settings": {**settings, **changes}}


@pytest.mark.parametrize(
    ("positions", "verdict"),
    [
        ([0.40, 0.13, 0.0, 0.0], "as published"),
        ([0.50, 0.20, 0.0, 0.0], "better than published"),
        ([0.30, 0.13, 0.0, 0.0], "worse than published, but its interval reaches the tolerance"),
        ([0.40, 0.12, 0.0], "as published, over the first 3 positions"),
    ],
)
def test_verdicts(positions: list[float], verdict: str) -> None:
    one = against_published(ROW, measured(positions))["suites"]["mt_bench"]
    assert one["verdict"] == verdict
    assert one["measured"] == pytest.approx(1 + sum(positions))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"temperature": 1.0}, "temperature 1.0, 0.0 there"),
        ({"max_new_tokens": 16}, "new tokens 16, 64 there"),
        ({"num_prompts": 40}, "prompts 40, 80 there"),
        ({"verifier": "tiny"}, "verifier tiny, Qwen3-8B there"),
    ],
)
def test_what_differs_is_said_and_nothing_judged(changes: dict[str, Any], text: str) -> None:
    compared = against_published(ROW, measured([0.4, 0.1, 0.0, 0.0], **changes))
    assert compared["suites"]["mt_bench"]["verdict"] == f"not comparable: {text}"
    assert text in markdown(expected_grid(compared))


def test_other_prompts_are_not_compared() -> None:
    compared = against_published(ROW, {"suites": {}, "settings": {}})
    assert compared["suites"]["mt_bench"]["verdict"] == "not measured: evaluation=mt_bench"


def test_positions_that_do_not_add_up_are_found() -> None:
    wrong = ExpectedResult(acceptance_length=1.7, acceptance_per_position=[0.4, 0.1])
    (problem,) = wrong.problems()
    assert problem.message == "adds up to a length of 1.500, not 1.7"

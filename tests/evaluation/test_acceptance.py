"""Arithmetic of acceptance, checked by hand and against published numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from speculators.evaluation.acceptance import DEFINITION, Acceptance


def test_numbers_of_a_small_case() -> None:
    acceptance = Acceptance.from_runs([[2, 0, 3], [1], []], 3)
    assert acceptance.num_prompts == 3
    assert acceptance.num_drafts == 4
    assert acceptance.num_accepted_tokens == 6
    assert acceptance.per_position == [0.75, 0.5, 0.25]
    assert acceptance.length == 1 + 6 / 4
    assert acceptance.rate == 6 / 12


def test_published_table_adds_up() -> None:
    """The tutorial's DFlash run: 36.80 8.79 1.39 .18 .02 % of 8 drafted give 1.47 and 5.90 %."""
    counts = [6320, 2801, 740, 121, 16, 2]
    runs = [[length] * count for length, count in enumerate(counts)]
    acceptance = Acceptance.from_runs(runs, 8)
    assert acceptance.per_position[:3] == pytest.approx([0.3680, 0.0879, 0.0139])
    assert acceptance.length == pytest.approx(1.4718)
    assert acceptance.rate == pytest.approx(0.0590, abs=1e-4)


def test_nothing_drafted_is_one() -> None:
    acceptance = Acceptance.from_runs([[]], 4)
    assert acceptance.length == 1.0
    assert acceptance.length_interval() is None
    assert Acceptance.from_runs([], 4).to_dict()["acceptance_length"] == 1.0


def test_merge_is_counting_together() -> None:
    parts = [Acceptance.from_runs([[2, 1]], 3), Acceptance.from_runs([[0], [3, 3]], 3)]
    together = Acceptance.from_runs([[2, 1], [0], [3, 3]], 3)
    assert Acceptance.merge(parts).to_dict() == together.to_dict()


def test_prompts_are_equal_when_as_many_drafts_stood_at_every_position() -> None:
    mine = Acceptance.from_runs([[2, 0], [1], []], 3)
    assert mine.num_equal_prompts(mine) == 3
    assert mine.num_equal_prompts(Acceptance.from_runs([[0, 2], [1, 0], []], 3)) == 2
    assert mine.num_equal_prompts(Acceptance.from_runs([[1, 1], [0], [0]], 3)) == 0


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    truth = 1 + sum(0.6**k for k in range(1, 5))
    covered = 0
    for seed in range(60):
        runs = [np.minimum(generator.geometric(0.4, size=20) - 1, 4).tolist() for _ in range(30)]
        interval = Acceptance.from_runs(runs, 4).length_interval(seed=seed)
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert covered >= 51


def test_interval_is_a_function_of_the_seed() -> None:
    runs = np.random.default_rng(0).integers(0, 8, (40, 9)).tolist()
    acceptance = Acceptance.from_runs(runs, 7)
    first = acceptance.length_interval(seed=1)
    assert first == acceptance.length_interval(seed=1) != acceptance.length_interval(seed=2)
    assert first is not None
    assert first[0] < acceptance.length < first[1]


def test_equal_prompts_leave_no_interval() -> None:
    assert Acceptance.from_runs([[1, 2]] * 5, 3).length_interval() == (2.5, 2.5)


def test_censored_drafts_count_where_they_were_judged() -> None:
    # Two full drafts with 2 and 0, one that was right at its only judged token.
    acceptance = Acceptance.from_runs([[2, 0, 1]], 2, [[2, 2, 1]])
    assert acceptance.per_position == pytest.approx([2 / 3, 2 / 3 * 1 / 1])


def test_censoring_does_not_bias() -> None:
    """Cut geometric runs at random: leaving them out is biased, the estimate is not."""
    generator = np.random.default_rng(3)
    full = np.minimum(generator.geometric(0.3, size=20000) - 1, 7)
    judged = np.where(generator.random(20000) < 0.5, generator.integers(1, 8, 20000), 7)
    cut = np.minimum(full, judged)
    estimate = Acceptance.from_runs([cut.tolist()], 7, [judged.tolist()]).length
    truth = Acceptance.from_runs([full.tolist()], 7).length
    kept = Acceptance.from_runs([full[full < judged].tolist()], 7).length
    assert estimate == pytest.approx(truth, rel=0.02)
    assert kept < 0.9 * truth


def test_dict_is_json_with_its_definition() -> None:
    numbers = json.loads(json.dumps(Acceptance.from_runs([[1], [2]], 3).to_dict()))
    assert numbers["acceptance_length"] == 2.5
    assert "bonus" in numbers["definition"]
    assert len(numbers["acceptance_length_ci95"]) == 2


def test_the_definition_is_written_down_once_for_people() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert DEFINITION in " ".join(text.replace("\n> ", " ").split())

"""Two evaluations compared: paired by prompt, with an interval, refused where that says nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.fakes import FakeDrafter, FakeTokenizer, FakeVerifier, noisy
from speculators.config.composition import compose
from speculators.config.schema import EvaluationConfig
from speculators.errors import ConfigError, DataError
from speculators.evaluation.evaluate import evaluate
from speculators.evaluation.paired import Evaluated, compare
from speculators.evaluation.prompts import Prompt
from speculators.launch.compare import compare_results

PROMPTS = [
    Prompt((f"t{3 + number} t{5 + number % 7}",), str(number), "ab"[number % 2])
    for number in range(12)
]


def evaluated(
    error_rate: float, size: int = 4, prompts: list[Prompt] = PROMPTS, **settings: Any
) -> dict[str, Any]:
    verifier = FakeVerifier(seed=1)
    drafter = FakeDrafter(verifier, noisy(verifier, size, error_rate), size)
    config = EvaluationConfig(**{"max_new_tokens": 30, "compare": False} | settings)
    result = evaluate(verifier, drafter, FakeTokenizer(), prompts, config, seed=0)
    return json.loads(json.dumps(result.to_dict()))


def read(name: str, values: dict[str, Any]) -> Evaluated:
    return Evaluated.read(name, values)


def test_what_is_read_back_is_what_was_measured() -> None:
    values = evaluated(0.3)
    again = read("a", values)
    assert again.acceptance.length == pytest.approx(values["acceptance_length"])
    assert again.acceptance.per_position == pytest.approx(values["acceptance_per_position"])
    assert list(again.acceptance.length_interval() or ()) == values["acceptance_length_ci95"]


def test_an_evaluation_does_not_differ_from_itself_in_another_order() -> None:
    values = evaluated(0.3)
    shuffled = {**values, "prompts": values["prompts"][::-1]}
    found = compare(read("a", values), read("b", shuffled))
    assert (found.whole.difference, found.whole.interval) == (0.0, (0.0, 0.0))
    assert not found.whole.significant
    assert found.verdict().startswith("No difference can be told: b +0.000")
    assert found.speed() == pytest.approx(1.0)


def test_a_better_drafter_is_named_with_its_parts() -> None:
    found = compare(read("poor", evaluated(0.6)), read("good", evaluated(0.05, size=6)))
    assert found.whole.difference == pytest.approx(found.whole.second - found.whole.first)
    assert found.whole.significant
    assert "good yields more tokens per verifier call than poor" in found.verdict()
    assert set(found.parts) == {"a", "b"}
    assert sum(part.num_prompts for part in found.parts.values()) == len(PROMPTS)


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says() -> None:
    """Prompts differ in difficulty, which both see: pairing has to take that out."""
    generator = np.random.default_rng(0)
    covered, widths = 0, []
    for trial in range(60):
        ease = generator.uniform(0.2, 0.8, size=40)
        sides = []
        for name, shift in (("a", 0.0), ("b", 0.1)):
            reached = generator.binomial(30, ease + shift)
            prompts = [
                {"prompt_id": str(i), "suite": None, "category": None, "fingerprint": "",
                 "prompt_tokens": 3, "tokens": 40, "seconds": 1.0, "plain_tokens": None,
                 "plain_seconds": None, "drafts": 30, "accepted_per_position": [int(count)]}
                for i, count in enumerate(reached)
            ]  # fmt: skip
            sides.append(read(name, {"definition": "d", "settings": {}, "prompts": prompts}))
        found = compare(*sides, seed=trial).whole
        assert found.interval is not None
        covered += found.interval[0] <= 0.1 <= found.interval[1]
        widths.append(found.interval[1] - found.interval[0])
    assert covered >= 52
    # Unpaired, the spread of the prompts alone would make intervals of 4 * 0.17 * sqrt(2 / 40).
    assert np.mean(widths) < 0.11


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"max_new_tokens": 29}, "max_new_tokens is 30 in a and 29 in b: only evaluations under"),
        ({"temperature": 1.0}, "temperature is 0.0 in a and 1.0 in b"),
        ({"prompts": PROMPTS[:-1]}, "a has 12, b 11, 11 are the same; prompt 11 is not in both"),
        (
            {"prompts": [*PROMPTS[:-1], Prompt(("t9",), "11")]},
            "a has 12, b 12, 11 are the same; prompt 11 is not in both",
        ),
    ],
)
def test_other_prompts_and_settings_are_refused(other: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        compare(read("a", evaluated(0.3)), read("b", evaluated(0.3, **other)))
    assert str(caught.value).startswith("compare: ")
    assert message in str(caught.value)


def test_other_definitions_and_totals_without_prompts_are_refused() -> None:
    values = evaluated(0.3)
    with pytest.raises(DataError, match="a and b define acceptance differently"):
        compare(read("a", values), read("b", {**values, "definition": "tokens per step"}))
    with pytest.raises(DataError, match="b: holds no numbers per prompt"):
        read("b", {**values, "prompts": []})


def test_the_command_reads_runs_and_files_and_writes_both_forms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, error_rate in (("poor", 0.6), ("good", 0.05)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.json").write_text(json.dumps(evaluated(error_rate)))
    config = compose(
        "evaluate",
        [
            f"compare=[{tmp_path}/poor,{tmp_path}/good/evaluation.json]",
            f"output_dir={tmp_path}/out",
        ],
    )
    values = compare_results(config)
    shown = " ".join(capsys.readouterr().out.split())
    assert "good yields more tokens per verifier call than poor" in shown
    assert "acceptance length = 1 + accepted tokens / drafts" in shown
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == values
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert "## good against poor" in page
    assert values["comparisons"][0]["verdict"] in page
    assert f"| all | 12 | {values['comparisons'][0]['all']['first']:.3f} |" in page


def test_what_is_no_evaluation_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    for path, message in (
        ("x.json", "x.json: not an evaluation"),
        ("gone", "gone: cannot be read: No such file"),
    ):
        config = compose("evaluate", [f"compare=[{tmp_path}/{path},{tmp_path}/x.json]"])
        with pytest.raises(DataError, match=message):
            compare_results(config)
    with pytest.raises(ConfigError, match=r"compare=\[a\]: needs two results or more"):
        compose("evaluate", ["compare=[a]"])

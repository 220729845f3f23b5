"""Parts of an evaluation: by suite, category, prompt length and context, with their speed-up."""

from __future__ import annotations

import pytest

from evaluation.fakes import FakeDrafter, FakeTokenizer, FakeVerifier, noisy
from speculators.config.schema import EvaluationConfig
from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.evaluate import evaluate
from speculators.evaluation.prompts import Prompt
from speculators.evaluation.result import EvaluationResult
from speculators.evaluation.slices import (
    PromptRow,
    by_category,
    by_context_length,
    by_prompt_length,
    by_suite,
    length_bin,
    length_name,
)
from speculators.evaluation.speed import speedup, speedup_interval


def row(suite: str | None = None, category: str | None = None, prompt_tokens: int = 5) -> PromptRow:
    return PromptRow("1", suite, category, "", prompt_tokens, 10, 1.0)


def test_suites_and_categories() -> None:
    rows = [row("a", "x"), row("b"), row("a", "y"), row("a", "x")]
    assert by_suite(rows) == {"a": [0, 2, 3], "b": [1]}
    assert by_category(rows) == {"a/x": [0, 3], "a/y": [2]}
    assert by_category([row("a", "x"), row("a")]) == {"x": [0], "uncategorised": [1]}
    assert by_suite([row(), row()]) == by_category([row(), row()]) == {}


def test_every_length_has_one_bin_whose_name_holds_it() -> None:
    for tokens in [0, 1, 63, 64, 127, 128, 255, 256, 4095, 4096]:
        low, _, high = length_name(length_bin(tokens)).partition("-")
        assert int(low) <= tokens <= int(high)
    rows = [row(prompt_tokens=tokens) for tokens in (300, 20, 64, 127)]
    assert by_prompt_length(rows) == {"0-63": [1], "64-127": [2, 3], "256-511": [0]}


def test_contexts_count_every_draft_once_and_prompts_apart() -> None:
    drafts = [[(10, 1), (70, 0)], [(20, 2)], [(65, 2), (66, 2)]]
    bins = by_context_length(drafts, 2)
    assert list(bins) == ["0-63", "64-127"]
    assert bins["0-63"].reached.tolist() == Acceptance.from_runs([[1], [2]], 2).reached.tolist()
    assert (
        bins["64-127"].reached.tolist() == Acceptance.from_runs([[0], [2, 2]], 2).reached.tolist()
    )
    assert bins["64-127"].num_drafts == 3


def test_speed_up_of_prompts_is_a_ratio_of_sums_inside_its_interval() -> None:
    rows = [
        PromptRow("1", None, None, "", 5, tokens, seconds, tokens, plain)
        for tokens, seconds, plain in [(10, 1.0, 3.0), (20, 2.0, 3.0), (30, 2.5, 6.0)]
    ]
    assert speedup(rows) == pytest.approx(12.0 / 5.5)
    low, high = speedup_interval(rows) or (0, 0)
    assert low < 12.0 / 5.5 < high
    assert 1.5 <= low < high <= 3.0
    assert speedup([row()]) is None
    assert speedup_interval(rows[:1]) is None


def evaluated() -> EvaluationResult:
    verifier = FakeVerifier(seed=1)
    drafter = FakeDrafter(verifier, noisy(verifier, 4, 0.3), 4)
    prompts = [
        Prompt(("t3 t4", "t5"), "1", "writing", suite="chat"),
        Prompt(("t7 t8 t9",), "2", "math", suite="chat"),
        Prompt(("t6",), "1", suite="sums"),
    ]
    config = EvaluationConfig(max_new_tokens=70)
    return evaluate(verifier, drafter, FakeTokenizer(), prompts, config, seed=0)


def test_parts_of_an_evaluation_add_up_to_the_whole() -> None:
    result = evaluated()
    numbers = result.to_dict()
    for parts in ("suites", "prompt_lengths", "context_lengths"):
        assert sum(part["num_drafts"] for part in numbers[parts].values()) == numbers["num_drafts"]
    assert set(numbers["categories"]) == {"chat/writing", "chat/math"}
    lengths = [part["acceptance_length"] for part in numbers["suites"].values()]
    assert numbers["mean_of_suites"] == pytest.approx(sum(lengths) / 2)
    assert set(numbers["context_lengths"]) >= {"0-63", "64-127"}
    for key in ("tokens", "seconds", "plain_tokens"):
        assert sum(prompt[key] for prompt in numbers["prompts"]) == pytest.approx(
            {"tokens": numbers["num_answer_tokens"], "seconds": numbers["speculative_seconds"]}.get(
                key, result.plain.tokens if result.plain else None
            )
        )
    first = numbers["prompts"][0]
    assert first["drafts"] + sum(first["accepted_per_position"]) >= first["tokens"] - 2


def test_a_fingerprint_follows_tokens_and_later_turns() -> None:
    prompts = [
        Prompt(("x",), "1"),
        Prompt(("other words, same tokens",), "2"),
        Prompt(("x", "more"), "3"),
    ]
    rows = [PromptRow.of(prompt, [1, 2], tokens=1, seconds=1.0) for prompt in prompts]
    assert rows[0].fingerprint == rows[1].fingerprint != rows[2].fingerprint
    assert PromptRow.of(prompts[0], [1, 3], tokens=1, seconds=1.0).fingerprint not in {
        one.fingerprint for one in rows
    }

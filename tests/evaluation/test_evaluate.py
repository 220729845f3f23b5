"""A whole evaluation on fakes."""

from __future__ import annotations

import io
import json

import pytest

from evaluation.fakes import FakeDrafter, FakeTokenizer, FakeVerifier, noisy, tiny_spec
from speculators.config.schema import EvaluationConfig, Sampling
from speculators.console import open_console
from speculators.errors import DataError
from speculators.evaluation.evaluate import evaluate
from speculators.evaluation.prompts import Prompt
from speculators.evaluation.result import distinct_gram_share
from speculators.evaluation.summary import summary_table

PROMPTS = [
    Prompt(("t3 t4", "t5"), "1", "writing", "f:1"),
    Prompt(("t7 t8 t9",), "2", "math", "f:2"),
    Prompt(("t6",), "3", "math", "f:3"),
]


def parts(error_rate: float = 0.3) -> tuple[FakeVerifier, FakeDrafter, FakeTokenizer]:
    verifier = FakeVerifier(seed=1)
    return verifier, FakeDrafter(verifier, noisy(verifier, 4, error_rate), 4), FakeTokenizer()


def test_greedy_evaluation_adds_up() -> None:
    verifier, drafter, tokenizer = parts()
    result = evaluate(
        verifier, drafter, tokenizer, PROMPTS, EvaluationConfig(max_new_tokens=30), seed=3
    )
    numbers = json.loads(json.dumps(result.to_dict()))
    assert numbers["num_prompts"] == numbers["lossless_prompts"] == 3
    assert numbers["mismatches"] == []
    assert set(numbers["categories"]) == {"writing", "math"}
    assert numbers["categories"]["math"]["num_prompts"] == 2
    assert result.plain is not None
    assert result.plain.verifier_calls == result.plain.tokens == result.speculative.tokens
    assert result.speculative.verifier_calls == result.acceptance.num_drafts + 4
    saved = 1 - result.speculative.verifier_calls / result.plain.verifier_calls
    assert numbers["verifier_calls_saved"] == pytest.approx(saved)
    assert numbers["speedup"] == pytest.approx(
        numbers["baseline_seconds"] / numbers["speculative_seconds"]
    )
    assert drafter.training


def test_answers_stand_in_the_history_of_the_next_turn() -> None:
    verifier, drafter, tokenizer = parts()
    seen: list[list[int]] = []
    keep = tokenizer.prompt_ids
    tokenizer.prompt_ids = lambda turns: seen.append(keep(turns)) or seen[-1]  # type: ignore
    config = EvaluationConfig(max_new_tokens=5, compare=False)
    evaluate(verifier, drafter, tokenizer, PROMPTS[:1], config, seed=0)
    first, second = seen[1:]
    answer = verifier.greedy(first, 5)
    assert 0 not in answer
    assert second == [*first, *answer, 1, 5, 1]


def test_tokenised_prompts_are_taken_as_they_are() -> None:
    verifier, drafter, tokenizer = parts(error_rate=0.0)
    tokenizer.prompt_ids = lambda turns: pytest.fail("tokenised anew")  # type: ignore
    prompt = Prompt(("shown",), "1", input_ids=(7, 8))
    config = EvaluationConfig(max_new_tokens=1, compare=False)
    result = evaluate(verifier, drafter, tokenizer, [prompt], config, seed=0)
    assert result.examples[0].first == f"t{verifier.greedy([7, 8], 1)[0]}"


def test_examples_tell_what_stands_in_the_answer() -> None:
    verifier, drafter, tokenizer = parts(error_rate=0.0)
    tokenizer.end_of_turn_ids = ()
    config = EvaluationConfig(max_new_tokens=8, compare=False)
    result = evaluate(verifier, drafter, tokenizer, PROMPTS[1:2], config, seed=0)
    example = result.examples[0]
    answer = [f"t{token}" for token in verifier.greedy([7, 8, 9, 1], 11)]
    assert example.first == answer[0]
    assert [draft.num_kept for draft in example.drafts] == [5, 2]
    assert [*example.drafts[0].drafted, example.drafts[0].bonus] == answer[1:6]
    assert result.lossless_prompts is None
    assert result.speedup is None


@pytest.mark.parametrize("sampling", list(Sampling))
def test_sampled_evaluation_claims_no_losslessness(sampling: Sampling) -> None:
    verifier, drafter, tokenizer = parts()
    config = EvaluationConfig(max_new_tokens=12, temperature=1.0, sampling=sampling)
    runs = [
        evaluate(verifier, drafter, tokenizer, PROMPTS, config, seed=seed) for seed in (1, 1, 2)
    ]
    assert runs[0].lossless_prompts is None
    assert runs[0].speedup is not None
    accepted = [run.acceptance.reached.tolist() for run in runs]
    assert accepted[0] == accepted[1] != accepted[2]
    assert runs[0].settings["sampling"] == sampling.value


def test_a_difference_is_reported_with_the_gap_of_its_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verifier, drafter, tokenizer = parts()
    ids = tokenizer.prompt_ids(PROMPTS[2].history([]))
    answer = verifier.greedy(ids, 10)
    forward = FakeVerifier.forward

    def wrong_alone(self: FakeVerifier, input_ids, cache, layer_ids, **options):
        """A verifier that answers differently when asked for one token at a time."""
        step = forward(self, input_ids, cache, layer_ids, **options)
        if len(input_ids) == 1 and len(cache) == len(ids) + 5:
            step.logits[0, answer[5]] -= 100
        return step

    monkeypatch.setattr(FakeVerifier, "forward", wrong_alone)
    result = evaluate(
        verifier, drafter, tokenizer, PROMPTS[2:], EvaluationConfig(max_new_tokens=10), seed=0
    )
    assert result.lossless_prompts == 0
    (mismatch,) = result.mismatches
    assert (mismatch.prompt_id, mismatch.turn) == ("3", 0)
    assert mismatch.index == 5
    assert mismatch.got == answer[5] != mismatch.expected
    assert mismatch.logit_gap is not None
    assert mismatch.logit_gap > 0


def test_prompt_without_room_is_refused() -> None:
    verifier, drafter, tokenizer = parts()
    verifier.spec = tiny_spec(max_position_embeddings=8)
    with pytest.raises(DataError, match=r"f:2: 4 tokens leave no room .* context of 8"):
        evaluate(verifier, drafter, tokenizer, PROMPTS[1:], EvaluationConfig(), seed=0)
    with pytest.raises(DataError, match="no prompt"):
        evaluate(verifier, drafter, tokenizer, [], EvaluationConfig(), seed=0)


def test_a_later_turn_without_room_is_left_out_and_counted() -> None:
    verifier, drafter, tokenizer = parts()
    config = EvaluationConfig(max_new_tokens=6)
    whole = evaluate(verifier, drafter, tokenizer, PROMPTS[:1], config, seed=0)
    verifier.spec = tiny_spec(max_position_embeddings=14)
    cut = evaluate(verifier, drafter, tokenizer, PROMPTS[:1], config, seed=0)
    assert whole.to_dict()["num_unanswered_turns"] == 0
    assert cut.to_dict()["num_unanswered_turns"] == 1
    assert cut.answers[0] == whole.answers[0][:1]
    screen = open_console(file=io.StringIO(), width=200)
    screen.print(summary_table(cut))
    text = " ".join(screen.file.getvalue().split())  # type: ignore[attr-defined]
    assert "1 later turns left out: context full" in text


def test_bar_and_table_show_the_numbers() -> None:
    verifier, drafter, tokenizer = parts()
    config = EvaluationConfig(max_new_tokens=10)
    screen = open_console(file=io.StringIO(), force_terminal=True, width=120)
    result = evaluate(verifier, drafter, tokenizer, PROMPTS, config, seed=7, console=screen)
    assert "tau" in screen.file.getvalue()  # type: ignore[attr-defined]
    screen.print(summary_table(result))
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert f"{result.acceptance.length:.3f}" in shown
    assert "lossless on 3 of 3 prompts" in shown
    low, high = result.to_dict()["acceptance_length_ci95"]
    assert f"{low:.2f}-{high:.2f}" in shown
    quiet = open_console(file=io.StringIO())
    evaluate(verifier, drafter, tokenizer, PROMPTS, config, seed=0, console=quiet)
    assert quiet.file.getvalue() == ""  # type: ignore[attr-defined]


def test_a_category_is_shown_as_it_is_named() -> None:
    """Brackets are no markup."""
    verifier, drafter, tokenizer = parts()
    prompts = [Prompt(("t3",), "1", "[/INST]", "f:1"), Prompt(("t4",), "2", "[bold]", "f:2")]
    result = evaluate(
        verifier, drafter, tokenizer, prompts, EvaluationConfig(max_new_tokens=6), seed=0
    )
    screen = open_console(file=io.StringIO(), width=120)
    screen.print(summary_table(result))
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "[/INST]" in shown
    assert "[bold]" in shown


def test_distinct_grams() -> None:
    assert distinct_gram_share([[1, 2, 3, 4, 5], [1, 2, 3, 4]]) == 1.0
    assert distinct_gram_share([[1, 1, 1, 1, 1, 1]]) == pytest.approx(1 / 3)
    assert distinct_gram_share([[1, 2]]) == 1.0

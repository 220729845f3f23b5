from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from speculators.config.schema.verifier import VerifierConfig
from speculators.errors import DataError
from speculators.verifier.generation import sample_tokens
from speculators.verifier.model import VerifierModel
from speculators.verifier.spec_reader import read_spec

PROMPTS = [[3, 4, 5], [7], [9, 10, 11, 12, 13, 14, 15, 16, 17], [20, 21], [1, 30, 31, 32]]


def load(folder: Path) -> VerifierModel:
    return VerifierModel.load(read_spec(VerifierConfig(name="test", name_or_path=str(folder))))


def greedy(folder: Path, prompt: Sequence[int], length: int, stop_ids: set[int]) -> list[int]:
    """Take the most likely token again and again, without cache or batch."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = list(prompt)
    while len(ids) < len(prompt) + length:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3_text"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_greedy_is_the_plain_loop(
    save_model: Callable[..., Path], family: str, batch_size: int
) -> None:
    folder = save_model(family)
    expected = [greedy(folder, prompt, 15, {2}) for prompt in PROMPTS]
    # Stop on tokens that really come up, at different steps in different rows.
    stop_ids = {expected[0][4], expected[2][9]}
    expected = [greedy(folder, prompt, 15, stop_ids) for prompt in PROMPTS]
    assert len({len(answer) for answer in expected}) > 1
    answers = load(folder).generate(
        PROMPTS, max_new_tokens=15, batch_size=batch_size, stop_ids=sorted(stop_ids)
    )
    assert answers == expected


def test_end_of_turn_is_the_default_stop(save_model: Callable[..., Path]) -> None:
    model = load(save_model("llama"))
    free = model.generate(PROMPTS, max_new_tokens=40, stop_ids=())
    stopped = model.generate(PROMPTS, max_new_tokens=40)
    for long, short in zip(free, stopped, strict=True):
        assert short == (long[: long.index(2) + 1] if 2 in long else long)


def test_draws_belong_to_the_prompt_and_the_seed(save_model: Callable[..., Path]) -> None:
    model = load(save_model("llama"))

    def draw(prompts: list[list[int]], seed: int, batch_size: int) -> list[list[int]]:
        return model.generate(
            prompts,
            max_new_tokens=12,
            temperature=1.0,
            seeds=[100 * seed + place for place in range(len(prompts))],
            batch_size=batch_size,
        )

    together = draw(PROMPTS, 1, 64)
    assert draw(PROMPTS, 1, 2) == together
    assert draw(PROMPTS[:2], 1, 1) == together[:2]
    assert draw(PROMPTS, 2, 64) != together
    same_prompt = draw([[5, 6, 7]] * 3, 1, 64)
    assert same_prompt[0] != same_prompt[1]


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5, -torch.inf, 2.0]])
    count = 100_000
    noise = torch.rand(count, generator=torch.Generator().manual_seed(0))
    drawn = sample_tokens(logits.expand(count, -1), 0.7, noise)
    expected = (logits[0] / 0.7).softmax(-1)
    torch.testing.assert_close(
        drawn.bincount(minlength=5) / count, expected, rtol=0, atol=4 / count**0.5
    )
    assert sample_tokens(logits, 0.7, torch.tensor([0.0])).item() == 0
    assert sample_tokens(logits, 0.7, torch.tensor([1.0])).item() == 4


def test_answers_end_with_the_context(save_model: Callable[..., Path]) -> None:
    model = load(save_model("llama"))
    prompts = [[3] * 120, [4] * 127]
    answers = model.generate(prompts, max_new_tokens=20, stop_ids=())
    assert [len(answer) for answer in answers] == [8, 1]
    with pytest.raises(DataError, match="prompt 1 has 128 tokens; allowed: 1 to 127"):
        model.generate([[3], [4] * 128], max_new_tokens=1)
    with pytest.raises(DataError, match="prompt 0 has 0 tokens"):
        model.generate([[]], max_new_tokens=1)


def test_answers_are_handed_over_as_they_end(save_model: Callable[..., Path]) -> None:
    seen: dict[int, list[int]] = {}
    model = load(save_model("llama"))
    answers = model.generate(
        PROMPTS, max_new_tokens=[3, 1, 3, 2, 3], batch_size=2, finished=seen.__setitem__
    )
    assert [seen[index] for index in range(5)] == answers
    assert len(answers[1]) == 1
    assert len(answers[3]) <= 2
    assert model.generate([], max_new_tokens=3) == []

"""Speculative decoding: lossless, exactly counted, and never recomputing accepted context."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from evaluation.fakes import FakeDrafter, FakeVerifier, noisy, tiny_spec
from speculators.config.schema import Sampling
from speculators.evaluation.decode import Decoded, DraftRecord, decode

PROMPT = [3, 1, 4]


def run(verifier: FakeVerifier, drafter: FakeDrafter | None, **settings: object) -> Decoded:
    settings = {"max_new_tokens": 40, "layer_ids": (0, 1), **settings}
    return decode(verifier, PROMPT, drafter=drafter, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("error_rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [1, 4])
def test_greedy_is_lossless_for_any_drafter(error_rate: float, size: int) -> None:
    verifier = FakeVerifier()
    plain = run(verifier, None)
    drafter = FakeDrafter(verifier, noisy(verifier, size, error_rate), size)
    fast = run(verifier, drafter)
    assert fast.tokens == plain.tokens == tuple(verifier.greedy(PROMPT, 40))
    emitted = 1 + sum(count + 1 for count in fast.accepted)
    assert emitted >= 40 > emitted - (fast.accepted[-1] + 1)
    assert fast.verifier_calls == len(fast.drafts) + 1
    assert plain.verifier_calls == 40
    assert not plain.drafts
    if error_rate == 0:
        assert set(fast.accepted) == {size}
    if error_rate == 1:
        assert set(fast.accepted) == {0}


def test_each_call_processes_only_the_block() -> None:
    verifier = FakeVerifier()
    run(verifier, FakeDrafter(verifier, noisy(verifier, 4, 0.3), 4))
    assert verifier.calls[0] == len(PROMPT)
    assert set(verifier.calls[1:]) == {5}


def test_records_of_a_hand_made_case() -> None:
    verifier = FakeVerifier()
    a = verifier.greedy(PROMPT, 8)
    wrong = (a[3] + 1) % 23
    drafts = {
        (*PROMPT, a[0]): [a[1], a[2], wrong],
        (*PROMPT, *a[:4]): [(a[4] + 1) % 23, a[5], a[6]],
        (*PROMPT, *a[:5]): [a[5], a[6], a[7]],
    }
    drafter = FakeDrafter(verifier, lambda prefix: drafts[tuple(prefix)], 3)
    decoded = run(verifier, drafter, max_new_tokens=7)
    assert decoded.drafts[0] == DraftRecord(3, (a[1], a[2], wrong), 2, a[3])
    assert decoded.drafts[1] == DraftRecord(6, ((a[4] + 1) % 23, a[5], a[6]), 0, a[4])
    # The third draft reaches past the seven tokens asked for: trimmed, but counted.
    assert decoded.accepted == [2, 0, 3]
    assert decoded.tokens == tuple(a[:7])
    assert not decoded.stopped


def test_answer_ends_with_the_stop_token_and_acceptance_behind_it_counts() -> None:
    verifier = FakeVerifier()
    answer = verifier.greedy(PROMPT, 12)
    stop = answer[5]
    first = answer.index(stop)
    drafter = FakeDrafter(verifier, noisy(verifier, 11, 0.0), 11)
    decoded = run(verifier, drafter, stop_ids=[stop])
    assert decoded.tokens == tuple(answer[: first + 1])
    assert decoded.stopped
    assert decoded.accepted == [11]


def test_a_stop_token_of_the_prompt_or_as_first_token() -> None:
    verifier = FakeVerifier()
    drafter = FakeDrafter(verifier, noisy(verifier, 2, 0.0), 2)
    answer = verifier.greedy(PROMPT, 3)
    if PROMPT[0] not in answer:
        assert len(run(verifier, drafter, stop_ids=[PROMPT[0]], max_new_tokens=3).tokens) == 3
    first = run(verifier, drafter, stop_ids=[answer[0]])
    assert first.tokens == (answer[0],)
    assert first.drafts == ()
    assert first.verifier_calls == 1


def test_one_token_needs_no_draft() -> None:
    verifier = FakeVerifier()
    decoded = run(verifier, FakeDrafter(verifier, noisy(verifier, 2, 0.0), 2), max_new_tokens=1)
    assert len(decoded.tokens) == 1
    assert decoded.drafts == ()


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        decode(FakeVerifier(), [], drafter=None, layer_ids=(), max_new_tokens=3)


def test_training_mode_and_gradients_are_restored() -> None:
    verifier = FakeVerifier()
    drafter = FakeDrafter(verifier, noisy(verifier, 2, 0.0), 2)
    drafter.dropout.eval()
    run(verifier, drafter, max_new_tokens=5)
    assert drafter.training
    assert not drafter.dropout.training
    assert torch.is_grad_enabled()


def test_sampling_repeats_with_the_seed() -> None:
    verifier = FakeVerifier()
    drafter = FakeDrafter(verifier, noisy(verifier, 3, 0.3), 3)
    answers = [
        run(
            verifier,
            drafter,
            temperature=1.0,
            sampling=Sampling.ratio,
            generator=torch.Generator().manual_seed(seed),
        ).tokens
        for seed in (5, 5, 6)
    ]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize("sampling", [Sampling.one_hot, Sampling.ratio, None])
def test_sampled_answers_are_distributed_as_the_verifier_says(sampling: Sampling | None) -> None:
    """Chi-square of three-token answers, with a drafter that is wrong about everything."""
    verifier = FakeVerifier(tiny_spec(vocab_size=3), seed=2, sharpness=1.0)
    size, temperature, draws = 3, 1.3, 400
    drafter = FakeDrafter(verifier, lambda prefix: [(sum(prefix) + i) % 3 for i in range(2)], 2)
    expected = np.ones((3,) * size)
    for answer in itertools.product(range(3), repeat=size):
        states = verifier.states([*PROMPT_3, *answer])
        p = torch.softmax(verifier.head.logits(states) / temperature, -1)
        for offset, token in enumerate(answer):
            expected[answer] *= float(p[len(PROMPT_3) - 1 + offset, token])
    counts = np.zeros_like(expected)
    generator = torch.Generator().manual_seed(11)
    for _ in range(draws):
        decoded = decode(
            verifier,
            PROMPT_3,
            drafter=None if sampling is None else drafter,
            layer_ids=(0, 1),
            max_new_tokens=size,
            temperature=temperature,
            sampling=sampling or Sampling.one_hot,
            generator=generator,
        )
        counts[decoded.tokens] += 1
    statistic = float(((counts - expected * draws) ** 2 / (expected * draws)).sum())
    # 26 degrees of freedom: 54.1 is the 99.9 % quantile.
    assert statistic < 54.1


PROMPT_3 = [2, 0, 1]

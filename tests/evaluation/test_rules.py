"""Acceptance rules against exact probabilities."""

from __future__ import annotations

import numpy as np
import torch

from speculators.evaluation.rules import accept_greedy, accept_one_hot, accept_ratio, draw

P = torch.tensor([[0.1, 0.6, 0.3, 0.0], [0.5, 0.0, 0.25, 0.25]])


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Return the chi-square statistic divided by its degrees of freedom."""
    used = expected > 0
    assert counts[~used].sum() == 0
    expected = expected[used] * counts.sum()
    return float(((counts[used] - expected) ** 2 / expected).sum() / (used.sum() - 1))


def test_greedy_counts_the_leading_agreements() -> None:
    logits = torch.eye(5)[[2, 3, 1, 4]]
    assert accept_greedy(torch.tensor([2, 3, 0]), logits) == (2, 1)
    assert accept_greedy(torch.tensor([2, 0, 1]), logits) == (1, 3)
    assert accept_greedy(torch.tensor([2, 3, 1]), logits) == (3, 4)
    assert accept_greedy(torch.tensor([], dtype=torch.int64), logits[:1]) == (0, 2)


def test_draw_follows_weights_and_never_takes_weight_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0])
    counts = np.bincount([draw(weights, generator) for _ in range(3000)], minlength=5)
    assert chi_square(counts, (weights / 3).numpy()) < 6


def test_one_hot_leaves_the_first_token_distributed_as_the_verifier() -> None:
    generator = torch.Generator().manual_seed(1)
    for bad in (0, 1, 3):
        counts = np.zeros(4)
        accepted = 0
        for _ in range(3000):
            count, following = accept_one_hot(torch.tensor([bad]), P, generator)
            counts[bad if count else following] += 1
            accepted += count
        assert chi_square(counts, P[0].numpy()) < 6
        assert abs(accepted / 3000 - float(P[0, bad])) < 0.03


def test_ratio_leaves_the_first_token_distributed_as_the_verifier() -> None:
    generator = torch.Generator().manual_seed(2)
    q = torch.tensor([[0.7, 0.1, 0.0, 0.2]])
    counts = np.zeros(4)
    accepted = 0
    for _ in range(4000):
        drafted = torch.tensor([draw(q[0], generator)])
        count, following = accept_ratio(drafted, q, P, generator)
        counts[int(drafted) if count else following] += 1
        accepted += count
    assert chi_square(counts, P[0].numpy()) < 6
    assert abs(accepted / 4000 - float(torch.minimum(P[0], q[0]).sum())) < 0.03


def test_equal_distributions_are_always_accepted() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(100):
        drafted = torch.tensor([draw(P[0], generator)])
        assert accept_ratio(drafted, P[:1], P, generator).num_accepted == 1


def test_bonus_after_full_acceptance_comes_from_the_last_row() -> None:
    generator = torch.Generator().manual_seed(4)
    sure = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert accept_one_hot(torch.tensor([1]), sure, generator) == (1, 0)
    assert accept_one_hot(torch.tensor([0]), sure, generator) == (0, 1)

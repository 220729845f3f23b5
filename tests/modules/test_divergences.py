from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from speculators.config.schema.speculator import LossWeights
from speculators.modules.divergences import AGAINST_VERIFIER, Distributions, cross_entropy

# DFlash specification, section 8: z = (1, 0, -1), teacher logits (0.5, 1, -2), label 1.
CHECK_VALUES = {
    "ce": (1.407606, (0.665241, -0.755272, 0.090031)),
    "kl": (0.293603, (0.299049, -0.359020, 0.059972)),
    "reverse_kl": (0.274914, (0.214259, -0.288271, 0.074012)),
    "js": (0.069027, (0.061001, -0.076030, 0.015029)),
    "tv": (0.359020, (0.162803, -0.184836, 0.022033)),
    "lk_alpha": (0.444758, (0.253992, -0.288366, 0.034374)),
    "lk_hybrid": (0.349458, (0.182719, -0.210298, 0.027579)),
}


def plain_terms(z: Tensor, y: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Losses from their definitions, for autograd."""
    log_q, log_p = z.log_softmax(-1), y.log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    m = (p + q) / 2
    alpha = torch.minimum(p, q).sum(-1)
    kl = (p * (log_p - log_q)).sum(-1)
    lam = torch.exp(-3 * alpha.detach())
    floor = alpha.detach().clamp(min=1e-5)  # the gradient goes on below the floor
    return {
        "ce": torch.where(labels >= 0, -log_q.gather(1, labels.clamp(min=0)[:, None])[:, 0], 0),
        "kl": kl,
        "reverse_kl": (q * (log_q - log_p)).sum(-1),
        "js": ((p * (log_p - m.log())).sum(-1) + (q * (log_q - m.log())).sum(-1)) / 2,
        "tv": 1 - alpha,
        "lk_alpha": -floor.log() - (alpha - alpha.detach()) / floor,
        "lk_hybrid": lam * kl + (1 - lam) * (1 - alpha),
    }


def term(name: str, z: Tensor, y: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    at = Distributions(z.log_softmax(-1), y.log_softmax(-1))
    found = cross_entropy(at, labels) if name == "ce" else AGAINST_VERIFIER[name](at)
    return found.value, found.grad


def test_every_configured_term_is_known() -> None:
    assert set(CHECK_VALUES) == {"ce", *AGAINST_VERIFIER} == set(LossWeights.__annotations__)


@pytest.mark.parametrize("name", CHECK_VALUES)
def test_check_values(name: str) -> None:
    z = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    y = torch.tensor([[0.5, 1.0, -2.0]], dtype=torch.float64)
    value, grad = term(name, z, y, torch.tensor([1]))
    wanted_value, wanted_grad = CHECK_VALUES[name]
    assert value.item() == pytest.approx(wanted_value, abs=6e-7)
    assert grad[0].tolist() == pytest.approx(wanted_grad, abs=6e-7)


def test_overlap_of_the_check_values() -> None:
    z, y = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.5, 1.0, -2.0]])
    alpha = Distributions(z.log_softmax(-1), y.log_softmax(-1)).alpha
    assert alpha.item() == pytest.approx(0.640980, abs=1e-6)


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
@pytest.mark.parametrize("name", CHECK_VALUES)
def test_gradient_equals_autograd(name: str, spread: float) -> None:
    g = torch.Generator().manual_seed(4)
    z = (torch.randn(40, 17, generator=g, dtype=torch.float64) * spread).requires_grad_()
    y = torch.randn(40, 17, generator=g, dtype=torch.float64) * spread
    labels = torch.randint(-1, 17, (40,), generator=g)
    value, grad = term(name, z.detach(), y, labels)
    reference = plain_terms(z, y, labels)[name]
    torch.testing.assert_close(value, reference.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(reference.sum(), z)[0])


@pytest.mark.parametrize("name", sorted(AGAINST_VERIFIER))
def test_equal_distributions(name: str) -> None:
    z = torch.randn(5, 9, dtype=torch.float64)
    value, grad = term(name, z, z.clone(), torch.zeros(5, dtype=torch.int64))
    assert value.abs().max() < 1e-12
    assert grad.abs().max() < 1e-6 if name.startswith(("tv", "lk")) else grad.abs().max() < 1e-12


@pytest.mark.parametrize("name", sorted(AGAINST_VERIFIER))
def test_far_apart_stays_finite(name: str) -> None:
    z, y = torch.full((1, 4), -200.0), torch.full((1, 4), -200.0)
    z[0, 0], y[0, 1] = 200.0, 200.0
    value, grad = term(name, z, y, torch.tensor([1]))
    assert value.isfinite().all()
    assert grad.isfinite().all()


def test_without_teacher_a_comparison_is_refused() -> None:
    at = Distributions(torch.zeros(1, 2).log_softmax(-1))
    compare: Callable[[Distributions], object] = AGAINST_VERIFIER["kl"]
    with pytest.raises(ValueError, match="give its log-probabilities"):
        compare(at)

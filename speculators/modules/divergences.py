"""Losses of one slot and their gradients in closed form (DFlash specification, section 8).

z are the draft's logits, q = softmax(z), p the verifier's probabilities over the same tokens,
alpha = sum min(p, q) the probability that a token drawn from q is accepted. Every function returns
the value per row and dL/dz; no gradient flows into p. Rows are independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ALPHA_FLOOR = 1e-5
_HYBRID_RATE = 3.0


class Divergence(NamedTuple):
    """A loss of every row and its gradient with respect to the logits of the row."""

    value: Float[Tensor, "row"]
    grad: Float[Tensor, "row vocab"]


class Distributions:
    """Draft and verifier distributions of the same rows; what losses share is computed once.

    Args:
        log_q: log-softmax of the draft's logits.
        log_p: log-softmax of the verifier's logits, if a loss needs it.
    """

    def __init__(
        self, log_q: Float[Tensor, "row vocab"], log_p: Float[Tensor, "row vocab"] | None = None
    ) -> None:
        self.log_q = log_q
        self._log_p = log_p

    @property
    def log_p(self) -> Float[Tensor, "row vocab"]:
        """Log-probabilities of the verifier."""
        if self._log_p is None:
            raise ValueError("this loss compares with the verifier: give its log-probabilities")
        return self._log_p

    @cached_property
    def q(self) -> Float[Tensor, "row vocab"]:
        """Probabilities of the draft."""
        return self.log_q.exp()

    @cached_property
    def p(self) -> Float[Tensor, "row vocab"]:
        """Probabilities of the verifier."""
        return self.log_p.exp()

    @cached_property
    def alpha(self) -> Float[Tensor, "row"]:
        """Overlap sum min(p, q)."""
        return torch.minimum(self.p, self.q).sum(-1)


def cross_entropy(at: Distributions, labels: Int[Tensor, "row"]) -> Divergence:
    """-log q[label]; rows with label -1 have value and gradient 0."""
    known = labels >= 0
    index = labels.clamp(min=0)[:, None]
    value = torch.where(known, -at.log_q.gather(1, index)[:, 0], 0)
    grad = at.q * known[:, None]
    return Divergence(value, grad.scatter_add_(1, index, -known[:, None].to(grad.dtype)))


def kl(at: Distributions) -> Divergence:
    """Forward KL(p, q) = sum p log(p / q)."""
    return Divergence((at.p * (at.log_p - at.log_q)).sum(-1), at.q - at.p)


def reverse_kl(at: Distributions) -> Divergence:
    """Reverse KL(q, p) = sum q log(q / p)."""
    ratio = at.log_q - at.log_p
    value = (at.q * ratio).sum(-1)
    return Divergence(value, at.q * (ratio - value[:, None]))


def js(at: Distributions) -> Divergence:
    """Jensen-Shannon: KL(p, m) / 2 + KL(q, m) / 2 with m = (p + q) / 2."""
    log_m = torch.logaddexp(at.log_q, at.log_p) - math.log(2)
    ratio = at.log_q - log_m
    from_q = (at.q * ratio).sum(-1)
    from_p = (at.p * (at.log_p - log_m)).sum(-1)
    return Divergence((from_p + from_q) / 2, at.q * (ratio - from_q[:, None]) / 2)


def tv(at: Distributions) -> Divergence:
    """Total variation 1 - alpha: the probability that a sampled draft is rejected."""
    below = at.q * (at.q <= at.p)
    return Divergence(1 - at.alpha, at.q * below.sum(-1, keepdim=True) - below)


def lk_alpha(at: Distributions) -> Divergence:
    """-log alpha, alpha kept above 1e-5 (arXiv:2602.23881)."""
    alpha = at.alpha.clamp(min=_ALPHA_FLOOR)
    return Divergence(-alpha.log(), tv(at).grad / alpha[:, None])


def lk_hybrid(at: Distributions) -> Divergence:
    """Mix kl and tv by lam = exp(-3 alpha), itself without gradient (arXiv:2602.23881)."""
    lam = (-_HYBRID_RATE * at.alpha).exp()
    far, near = kl(at), tv(at)
    return Divergence(
        lam * far.value + (1 - lam) * near.value,
        lam[:, None] * far.grad + (1 - lam)[:, None] * near.grad,
    )


AGAINST_VERIFIER: dict[str, Callable[[Distributions], Divergence]] = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "js": js,
    "tv": tv,
    "lk_alpha": lk_alpha,
    "lk_hybrid": lk_hybrid,
}
"""Losses that compare with the verifier's distribution, by configured name. `ce` has labels."""


def needs_verifier(names: Iterable[str]) -> bool:
    """Return whether one of these losses compares with the verifier's distribution."""
    return any(name in AGAINST_VERIFIER for name in names)

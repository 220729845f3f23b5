"""Acceptance rules: how many drafted tokens stand, and which token comes next.

Every rule leaves the verifier's output distribution unchanged, however bad the draft
(DFlash specification, section 12). All random numbers come from a CPU generator, so results do
not depend on the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Verdict(NamedTuple):
    """What a verify call decided.

    Attributes:
        num_accepted: drafted tokens that stand.
        next_token: the verifier's own token after them (the bonus token).
    """

    num_accepted: int
    next_token: int


def accept_greedy(drafted: Int[Tensor, "draft"], logits: Float[Tensor, "draft+1 vocab"]) -> Verdict:
    """Accept while a drafted token is the verifier's most likely one.

    Args:
        drafted: tokens after the newest one; may be empty.
        logits: row i judges drafted token i; the last row follows all of them.
    """
    best = logits.argmax(-1)
    num_accepted = _leading((best[:-1] == drafted).tolist())
    return Verdict(num_accepted, int(best[num_accepted]))


def accept_one_hot(
    drafted: Int[Tensor, "draft"],
    probabilities: Float[Tensor, "draft+1 vocab"],
    generator: torch.Generator | None,
) -> Verdict:
    """Accept a token drafted by argmax with the verifier's probability p of it.

    After a rejection the next token is drawn from p without the rejected token.
    """
    rows = torch.arange(len(drafted), device=drafted.device)
    chances = probabilities[rows, drafted].cpu().double()
    num_accepted = _leading((_uniform(len(drafted), generator) < chances).tolist())
    weights = probabilities[num_accepted]
    if num_accepted < len(drafted):
        weights = weights.clone()
        weights[drafted[num_accepted]] = 0
    return Verdict(num_accepted, draw(weights, generator))


def accept_ratio(
    drafted: Int[Tensor, "draft"],
    proposed: Float[Tensor, "draft vocab"],
    probabilities: Float[Tensor, "draft+1 vocab"],
    generator: torch.Generator | None,
) -> Verdict:
    """Accept a token drawn from q with probability min(1, p / q).

    After a rejection the next token is drawn from max(p - q, 0), renormalised.

    Args:
        drafted: tokens drawn from `proposed`.
        proposed: the drafter's distributions q.
        probabilities: the verifier's distributions p.
        generator: source of randomness.
    """
    rows = torch.arange(len(drafted), device=drafted.device)
    p = probabilities[rows, drafted].cpu().double()
    q = proposed[rows, drafted].cpu().double()
    num_accepted = _leading((_uniform(len(drafted), generator) * q < p).tolist())
    weights = probabilities[num_accepted]
    if num_accepted < len(drafted):
        residual = (weights - proposed[num_accepted]).clamp_min(0)
        # p == q up to rounding: a rejection is then rounding too, and p itself is the limit.
        weights = residual if float(residual.sum()) > 0 else weights
    return Verdict(num_accepted, draw(weights, generator))


def draw(weights: Float[Tensor, "vocab"], generator: torch.Generator | None) -> int:
    """Draw an index with chance proportional to `weights`; weight 0 is never drawn.

    Inverts the cumulative sum in fp64 on the CPU: `torch.multinomial` would need a generator on
    the device and is limited to 2^24 categories, and not every accelerator has fp64.
    """
    cumulative = weights.cpu().double().cumsum(0)
    total = cumulative[-1:]
    point = _uniform(1, generator) * total
    # The last index with weight: rounding may push the point onto the total itself.
    last = torch.searchsorted(cumulative, total)
    return int(torch.minimum(torch.searchsorted(cumulative, point, right=True), last))


def _uniform(count: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=generator)


def _leading(flags: list[bool]) -> int:
    """Number of True before the first False."""
    return flags.index(False) if False in flags else len(flags)

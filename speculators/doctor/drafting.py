"""Drafts along a probe, as decoding makes them: one session, fed piece by piece."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from speculators.algorithms.base import Drafter, Proposal
from speculators.doctor.probe import Probe

_CLEAR = 1.5

_STEPS = (1, 3, 1, 2)
"""Tokens confirmed from one draft to the next, again and again: caches grow by few and by many."""


def starts_of(drafter: Drafter[Any], probe: Probe) -> list[int]:
    """Return where drafts start along a probe, ascending."""
    possible = set(drafter.start_candidates(probe.row()).nonzero().flatten().tolist())
    found, at, step = [], probe.start, 0
    while at < len(probe):
        if at in possible:
            found.append(at)
        at, step = at + _STEPS[step % len(_STEPS)], step + 1
    return found


def session_drafts(
    drafter: Drafter[Any], probe: Probe, starts: list[int]
) -> Int[Tensor, "start draft"]:
    """Return what a session drafts greedily after each of `starts`, caches and all."""
    session, known, drafts = drafter.new_session(), 0, []
    ids = probe.input_ids.to(probe.states.aux.device)
    for at in starts:
        proposal = session.propose(probe.states.aux[known:at], ids[known + 1 : at + 1])
        drafts.append(proposal.tokens.cpu())
        known = at
    if not drafts:
        return torch.empty((0, drafter.num_draft_tokens), dtype=torch.int64)
    return torch.stack(drafts)


def is_clear(drafter: Drafter[Any], probe: Probe, at: int) -> bool:
    """Whether the first token after `at` is so likely that rounding cannot change the choice."""
    distribution = first_distribution(drafter, probe, at)
    if distribution is None:
        return False
    first, second = distribution.topk(2).values.tolist()
    return first > _CLEAR * second


def first_distribution(
    drafter: Drafter[Any], probe: Probe, at: int
) -> Float[Tensor, "vocab"] | None:
    """Return what the first token after `at` is drawn from at temperature 1."""
    ids = probe.input_ids.to(probe.states.aux.device)
    drawn: Proposal = drafter.new_session().propose(
        probe.states.aux[:at],
        ids[1 : at + 1],
        temperature=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    return None if drawn.probabilities is None else drawn.probabilities[0].float().cpu()

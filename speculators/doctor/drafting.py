"""Drafts along a probe, as decoding makes them: one session, fed piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from speculators.algorithms.base import Drafter
from speculators.doctor.probe import Probe

_CLEAR = 1.5

_STEPS = (1, 3, 1, 2)
"""Tokens confirmed from one draft to the next, again and again: caches grow by few and by many."""


@dataclass(frozen=True, eq=False)
class ProbeDrafts:
    """What one drafter drafts along one probe, each thing computed once.

    Attributes:
        drafter: in eval mode.
        probe: on its device.
    """

    drafter: Drafter[Any]
    probe: Probe

    @cached_property
    def starts(self) -> list[int]:
        """Positions after which drafts start, ascending."""
        return starts_of(self.drafter, self.probe)

    @cached_property
    def tokens(self) -> Int[Tensor, "start draft"]:
        """What a session drafts greedily after each of them."""
        return session_drafts(self.drafter, self.probe, self.starts)

    @cached_property
    def clear(self) -> list[bool]:
        """Whether each first token is so likely that rounding cannot change the choice."""
        generator = torch.Generator().manual_seed(0)
        session, known, clear = self.drafter.new_session(), 0, []
        ids = self.probe.input_ids.to(self.probe.states.aux.device)
        for at in self.starts:
            states, confirmed = self.probe.states.aux[known:at], ids[known + 1 : at + 1]
            drawn = session.propose(states, confirmed, temperature=1.0, generator=generator)
            known = at
            if drawn.probabilities is None:
                clear.append(False)
                continue
            first, second = drawn.probabilities[0].float().topk(2).values.tolist()
            clear.append(first > _CLEAR * second)
        return clear


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

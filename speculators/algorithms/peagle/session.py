"""Drafting along one sequence: the base's keys are kept, those of mask slots never."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from speculators.algorithms.base import DraftSession, Proposal
from speculators.algorithms.eagle3.session import BaseCache

if TYPE_CHECKING:
    from speculators.algorithms.peagle.model import PEagleDrafter


class PEagleSession(DraftSession):
    """Drafts all tokens in one pass after the newest row.

    Args:
        drafter: its weights are read at every call.
    """

    def __init__(self, drafter: PEagleDrafter) -> None:
        self.drafter = drafter
        self.cache = BaseCache(drafter.rule)

    @torch.no_grad()
    def propose(
        self,
        states: Float[Tensor, "new aux_layer hidden"],
        tokens: Int[Tensor, "new"],
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Proposal:
        """Append the confirmed rows, then draft a block, see `DraftSession`."""
        drafter, cache, device = self.drafter, self.cache, states.device
        embeddings, size = drafter.embed(tokens), drafter.num_draft_tokens
        base = cache.extend(drafter, embeddings, states)
        first = cache.length - 1
        hidden = drafter.run(
            base,
            embeddings[-1:],
            drafter.mask_embedding,
            torch.arange(first, first + size, device=device)[None],
            torch.tensor([len(states) - 1], device=device),
            cache.attention(size, 0, device),
        )
        return drafter.draw(drafter.logits(hidden[0]), temperature, generator)

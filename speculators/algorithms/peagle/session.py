"""Drafting along one sequence: the base's keys are kept, those of mask slots never."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from speculators.algorithms.base import DraftSession, Proposal
from speculators.algorithms.eagle3.session import BaseCache
from speculators.algorithms.peagle.network import PEagleNetwork


class PEagleSession(DraftSession):
    """Drafts all tokens in one pass after the newest row.

    Args:
        network: its weights are read at every call.
    """

    def __init__(self, network: PEagleNetwork) -> None:
        self.network = network
        self.cache = BaseCache(network)

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
        network, cache, device = self.network, self.cache, states.device
        embeddings, size = network.embed(tokens), network.config.num_draft_tokens
        base = cache.extend(embeddings, states)
        first = cache.length - 1
        hidden = network.run(
            base,
            embeddings[-1:],
            torch.arange(first, first + size, device=device)[None],
            torch.tensor([len(states) - 1], device=device),
            cache.attention(size, 0, device),
        )
        return network.draw(network.logits(hidden[0]), temperature, generator)

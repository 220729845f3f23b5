"""Drafting along one sequence: the base's keys are computed once and kept, a chain's never."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from speculators.algorithms.base import DraftSession, Proposal
from speculators.algorithms.eagle3.network import Eagle3Network, Encoded, FusedNetwork
from speculators.attention.backend import BlockAttention, prepare_attention
from speculators.attention.layout import BlockLayout
from speculators.config.schema import AttentionBackend
from speculators.modules.decoder import KeyValue
from speculators.modules.key_value_cache import KeyValueCache


@dataclass
class BaseCache:
    """Keys and values of confirmed rows in every layer.

    Attributes:
        network: whose rows they are.
        length: rows.
        caches: one per layer.
    """

    network: FusedNetwork
    length: int = 0
    caches: list[KeyValueCache] = field(default_factory=list)

    def extend(
        self,
        embeddings: Float[Tensor, "new hidden"],
        states: Float[Tensor, "new aux_layer hidden"],
    ) -> Encoded:
        """Append confirmed rows; the last of them is where drafting starts."""
        device = states.device
        first, self.length = self.length, self.length + len(states)
        num_layers = len(self.network.chain_layers())
        self.caches = self.caches or [KeyValueCache() for _ in range(num_layers)]

        def keep(layer: int, keys: KeyValue) -> KeyValue:
            self.caches[layer].append(keys)
            return self.caches[layer].view()

        every = None
        if num_layers > 1:
            every = self._attention(torch.arange(first, self.length), 1, 0, device)
        positions = torch.arange(first, self.length, device=device)
        return self.network.encode(embeddings, states, positions, every, keep)

    def attention(self, num_slots: int, first_query: int, device: torch.device) -> BlockAttention:
        """Return attention of the last row's slots, from `first_query` on."""
        return self._attention(torch.tensor([self.length - 1]), num_slots, first_query, device)

    def _attention(
        self, rows: Int[Tensor, "row"], num_slots: int, first_query: int, device: torch.device
    ) -> BlockAttention:
        index = torch.arange(self.length)
        layout = BlockLayout(
            rows, len(rows), torch.zeros_like(index), index, num_slots, first_query
        )
        # One sequence at a time has a new shape at every call; compiled kernels would be rebuilt.
        backend = AttentionBackend.sdpa
        return prepare_attention(layout, self.network.rule, backend, device, gradients=False)


class Eagle3Session(DraftSession):
    """Drafts one token after the other, feeding back its own output.

    Args:
        network: its weights are read at every call.
    """

    def __init__(self, network: Eagle3Network) -> None:
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
        """Append the confirmed rows, then draft a chain, see `DraftSession`."""
        network, cache = self.network, self.cache
        embeddings, device = network.embed(tokens), states.device
        base = cache.extend(embeddings, states)
        drafted: list[Proposal] = []

        def draw(step: int, normed: Tensor) -> Tensor:
            drafted.append(network.draw(network.logits(normed), temperature, generator))
            return network.embed(drafted[-1].tokens)

        outputs = network.unroll(
            base,
            embeddings[-1:],
            torch.tensor([cache.length - 1], device=device),
            torch.tensor([len(states) - 1], device=device),
            network.config.num_draft_tokens,
            draw,
            lambda step: cache.attention(step + 1, step, device),
        )
        draw(len(outputs) - 1, outputs[-1])
        parts = [p.probabilities for p in drafted if p.probabilities is not None]
        tokens = torch.cat([p.tokens for p in drafted])
        return Proposal(tokens, torch.cat(parts) if parts else None)

"""Drafting along one sequence: the context's keys and values are computed once and kept."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from speculators.algorithms.base import DraftSession, Proposal
from speculators.algorithms.dflash.network import DFlashNetwork
from speculators.attention.layout import BlockLayout, MaskRule
from speculators.attention.sdpa import segment_attention
from speculators.attention.segments import Segment, SegmentPlan, plan_segments
from speculators.modules.key_value_cache import KeyValueCache


class DFlashSession(DraftSession):
    """Caches keys and values of confirmed tokens per layer; those of a block are never kept.

    Args:
        network: its weights are read at every call.
    """

    def __init__(self, network: DFlashNetwork) -> None:
        self.network = network
        self.length = 0
        self._caches = [KeyValueCache() for _ in network.rules]

    @torch.no_grad()
    def propose(
        self,
        states: Float[Tensor, "new aux_layer hidden"],
        tokens: Int[Tensor, "new"],
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Proposal:
        """Append the context, then draft after the last of `tokens`, see `DraftSession`."""
        network = self.network
        device = states.device
        begin, self.length = self.length, self.length + len(states)
        positions = torch.arange(begin, self.length, device=device)
        for cache, new in zip(self._caches, network.encode(states, positions), strict=True):
            cache.append(new)

        size = network.config.block_size
        hidden = network.run(
            network.embed(tokens[-1:]),
            network.mask_embedding,
            torch.arange(self.length, self.length + size, device=device)[None],
            [cache.view() for cache in self._caches],
            {rule: _Attend(self._plan(rule, device)) for rule in dict.fromkeys(network.rules)},
            torch.arange(1, size, device=device),
        )
        return network.propose(hidden, tokens[-1], temperature, generator)

    def _plan(self, rule: MaskRule, device: torch.device) -> SegmentPlan:
        """Return the one block's plan: all of the cache, or what the window leaves."""
        if rule == MaskRule():
            return SegmentPlan((Segment(0, 1, 0, self.length, ()),) if self.length else (), None)
        end = torch.tensor([self.length])
        index = torch.arange(self.length + 1)
        size = self.network.config.block_size
        layout = BlockLayout(end, 1, torch.zeros_like(index), index, size)
        return plan_segments(layout, rule, device)


class _Attend:
    """Attention of the block under a plan made for this call."""

    def __init__(self, plan: SegmentPlan) -> None:
        self.plan = plan

    def __call__(
        self, q: Tensor, k_context: Tensor, v_context: Tensor, k_block: Tensor, v_block: Tensor
    ) -> Tensor:
        return segment_attention(q, k_context, v_context, k_block, v_block, self.plan)

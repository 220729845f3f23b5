"""Drafting along one sequence: the context's keys and values are computed once and kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from speculators.algorithms.base import DraftSession, Proposal
from speculators.attention.layout import BlockLayout, MaskRule
from speculators.attention.sdpa import segment_attention
from speculators.attention.segments import Segment, SegmentPlan, plan_segments
from speculators.modules.decoder import KeyValue

if TYPE_CHECKING:
    from speculators.algorithms.dflash.model import DFlashDrafter

_FIRST_CAPACITY = 256


class DFlashSession(DraftSession):
    """Caches keys and values of confirmed tokens per layer; those of a block are never kept.

    Args:
        drafter: its weights are read at every call.
    """

    def __init__(self, drafter: DFlashDrafter) -> None:
        self.drafter = drafter
        self.length = 0
        self._caches: list[_Cache] = [_Cache() for _ in drafter.rules]

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
        drafter = self.drafter
        device = states.device
        begin, self.length = self.length, self.length + len(states)
        positions = torch.arange(begin, self.length, device=device)
        for cache, new in zip(self._caches, drafter.encode(states, positions), strict=True):
            cache.append(new)

        size = drafter.config.block_size
        hidden = drafter.run(
            nn.functional.embedding(tokens[-1:], drafter.embed_tokens),
            drafter.mask_embedding,
            torch.arange(self.length, self.length + size, device=device)[None],
            [cache.view() for cache in self._caches],
            {rule: _Attend(self._plan(rule, device)) for rule in dict.fromkeys(drafter.rules)},
            torch.arange(1, size, device=device),
        )
        logits = (hidden.to(drafter.lm_head.dtype) @ drafter.lm_head.T).float()
        if temperature == 0:
            return Proposal(drafter.token_ids[logits.argmax(-1)])
        return self._sample(logits / temperature, generator)

    def _sample(self, logits: Tensor, generator: torch.Generator | None) -> Proposal:
        drafter = self.drafter
        q = logits.softmax(-1)
        at = q if generator is None else q.to(generator.device)
        drawn = torch.multinomial(at, 1, generator=generator)[:, 0].to(q.device)
        full = q.new_zeros(len(q), drafter.vocabulary.vocab_size)
        full[:, drafter.token_ids] = q
        return Proposal(drafter.token_ids[drawn], full)

    def _plan(self, rule: MaskRule, device: torch.device) -> SegmentPlan:
        """Return the one block's plan: all of the cache, or what the window leaves."""
        if rule == MaskRule():
            return SegmentPlan((Segment(0, 1, 0, self.length, ()),) if self.length else (), None)
        end = torch.tensor([self.length])
        index = torch.arange(self.length + 1)
        size = self.drafter.config.block_size
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


class _Cache:
    """Keys and values of one layer in buffers that double when they are full."""

    def __init__(self) -> None:
        self.length = 0
        self.buffers: KeyValue | None = None

    def append(self, new: KeyValue) -> None:
        """Add the keys and values of new tokens."""
        end = self.length + len(new.keys)
        if self.buffers is None or end > len(self.buffers.keys):
            capacity = max(_FIRST_CAPACITY, 2 * end)
            grown = KeyValue(*(t.new_empty(capacity, *t.shape[1:]) for t in new))
            if self.buffers is not None:
                for old, fresh in zip(self.view(), grown, strict=True):
                    fresh[: self.length] = old
            self.buffers = grown
        for buffer, part in zip(self.buffers, new, strict=True):
            buffer[self.length : end] = part
        self.length = end

    def view(self) -> KeyValue:
        """Return what is filled."""
        assert self.buffers is not None
        return KeyValue(*(buffer[: self.length] for buffer in self.buffers))

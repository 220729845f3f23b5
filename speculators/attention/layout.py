"""Where the blocks of one packed row stand: the only input of every mask and every backend."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from speculators.modules.transfer import send

_NO_DOCUMENT = -2


@dataclass(frozen=True)
class MaskRule:
    """What a layer's slots see (DFlash specification, section 5).

    Attributes:
        window: keys at this distance or farther are invisible, in tokens; None sees everything.
            The distance is measured from the slot itself, as the serving engine does.
        causal: slots see only earlier slots of their block, and themselves.
    """

    window: int | None = None
    causal: bool = False


@dataclass(frozen=True)
class BlockLayout:
    """Blocks drafted after anchors of one packed row.

    Keys are the row's tokens followed by the slots of all blocks: `sequence + anchor * block`.
    Blocks at the end of `anchors` beyond `num_valid` only fill up the shape; they see themselves.

    Attributes:
        anchors: index of the last known token of each block; the valid ones ascend.
        num_valid: blocks that count.
        document_ids: document of each token, contiguous runs, -1 at padding.
        position_ids: position of each token in its document, ascending by one.
        block_size: slots per block, the anchor's own included.
        first_query: slots of a block before this one are keys only; they do not ask.
        most_blocks: blocks that any row of the run may have. Kernels that are compiled for one
            shape compute this many, see `at_most`; 0 is as many as there are.
    """

    anchors: Int[Tensor, "anchor"]
    num_valid: int
    document_ids: Int[Tensor, "sequence"]
    position_ids: Int[Tensor, "sequence"]
    block_size: int
    first_query: int = 0
    most_blocks: int = 0

    def at_most(self) -> BlockLayout:
        """Return the layout filled up to `most_blocks`, the shape all rows of a run share."""
        missing = max(0, self.most_blocks - self.num_blocks)
        return replace(self, anchors=torch.cat([self.anchors, self.anchors.new_zeros(missing)]))

    @property
    def num_blocks(self) -> int:
        """Blocks, filling included."""
        return self.anchors.shape[0]

    @property
    def num_slots(self) -> int:
        """Slots of all blocks."""
        return self.num_blocks * self.block_size

    @property
    def queries_per_block(self) -> int:
        """Slots of a block that ask."""
        return self.block_size - self.first_query

    @property
    def num_queries(self) -> int:
        """Slots of all blocks that ask."""
        return self.num_blocks * self.queries_per_block

    @property
    def sequence_length(self) -> int:
        """Tokens of the packed row."""
        return self.document_ids.shape[0]

    def block_documents(self) -> Int[Tensor, "anchor"]:
        """Return the document of each block, -2 for filling (which no token carries)."""
        documents = self.document_ids[self.anchors]
        index = torch.arange(self.num_blocks, device=documents.device)
        return torch.where(index < self.num_valid, documents, _NO_DOCUMENT)

    def slot_positions(self) -> Int[Tensor, "anchor block"]:
        """Return the position of every slot in its document (rotary position of queries)."""
        slots = torch.arange(self.block_size, device=self.anchors.device)
        return self.position_ids[self.anchors][:, None] + slots

    def document_starts(self) -> Int[Tensor, "sequence"]:
        """Return for every token the index of the first token of its run of `document_ids`."""
        ids = self.document_ids
        index = torch.arange(ids.shape[0], device=ids.device)
        first = torch.ones_like(ids, dtype=torch.bool)
        first[1:] = ids[1:] != ids[:-1]
        return torch.where(first, index, 0).cummax(0).values

    def context_bounds(
        self, rule: MaskRule
    ) -> tuple[Int[Tensor, "anchor query"], Int[Tensor, "anchor"]]:
        """Return the half-open range of tokens each query sees: (first per query, end per block).

        It is empty (first >= end) for a block without visible context and for filling.
        """
        end = torch.where(self.block_documents() >= 0, self.anchors, 0)
        first = self.document_starts()[self.anchors][:, None].expand(-1, self.queries_per_block)
        if rule.window is not None:
            slots = self._asking_slots()
            first = torch.maximum(first, self.anchors[:, None] + slots - rule.window + 1)
        return first, end

    def slot_bounds(self, rule: MaskRule) -> tuple[Int[Tensor, "query"], Int[Tensor, "query"]]:
        """Return the half-open range of slots of its own block each query sees: (first, end)."""
        slot = self._asking_slots()
        first, end = torch.zeros_like(slot), torch.full_like(slot, self.block_size)
        if rule.window is not None:
            first = (slot - rule.window + 1).clamp(min=0)
            end = (slot + rule.window).clamp(max=self.block_size)
        return first, torch.minimum(end, slot + 1) if rule.causal else end

    def _asking_slots(self) -> Int[Tensor, "query"]:
        return torch.arange(self.first_query, self.block_size, device=self.anchors.device)

    def to(self, device: torch.device | str) -> BlockLayout:
        """Return the layout with every tensor on `device`."""
        return replace(
            self,
            anchors=send(self.anchors, device),
            document_ids=send(self.document_ids, device),
            position_ids=send(self.position_ids, device),
        )

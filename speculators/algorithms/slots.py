"""Which slots are trained, and on what: integers of one packed row, worked out on the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from speculators.attention.layout import BlockLayout
from speculators.data.types import HostRow


@dataclass(frozen=True)
class SlotPlan:
    """Slots of all blocks that are trained, sorted by the base position of their prediction.

    Slot k of a block after anchor a predicts token a + k; the verifier's opinion on it sits at base
    position a + k - 1. Slot 0 holds the anchor itself and predicts nothing.

    Attributes:
        supervised: slots with a target in the loss mask of the anchor's document.
        flat: slots that go through the head, as index into `anchor * block`.
        labels: draft id of the token each of them predicts, -1 where it cannot be drafted.
        bases: base positions needed, each once, ascending.
        index: entry of `bases` for each slot, ascending.
        num_targets: supervised tokens that some slot predicts.
        num_supervised: supervised tokens of the row.
    """

    supervised: Bool[Tensor, "anchor block"]
    flat: Int[Tensor, "slot"]
    labels: Int[Tensor, "slot"]
    bases: Int[Tensor, "base"]
    index: Int[Tensor, "slot"]
    num_targets: int
    num_supervised: int


def plan_slots(
    row: HostRow,
    layout: BlockLayout,
    draft_ids: Int[Tensor, "vocab"] | None,
    *,
    skip_unreachable: bool,
    chained: bool = False,
) -> SlotPlan:
    """Find the slots to train.

    Args:
        row: tokens and masks.
        layout: blocks; may end before the row does.
        draft_ids: draft id of every verifier token, -1 where it has none; None: they are equal.
        skip_unreachable: leave out slots whose token cannot be drafted (no term would train them).
        chained: a slot is supervised only when all before it in its block are, because it is
            drafted from them.
    """
    slot = torch.arange(layout.block_size)
    target = layout.anchors[:, None] + slot
    inside = target < len(row.input_ids)
    target = target.clamp(max=len(row.input_ids) - 1)
    same_document = row.document_ids[target] == layout.block_documents()[:, None]
    supervised = inside & same_document & row.loss_mask[target] & (slot >= 1)
    if chained:
        supervised[:, 1:] = supervised[:, 1:].cumprod(-1).bool()

    tokens = row.input_ids[target]
    labels = tokens if draft_ids is None else draft_ids[tokens]
    trained = supervised & (labels >= 0) if skip_unreachable else supervised
    flat = trained.flatten().nonzero().flatten()
    flat = flat[target.flatten()[flat].argsort(stable=True)]
    bases, index = (target.flatten()[flat] - 1).unique_consecutive(return_inverse=True)
    return SlotPlan(
        supervised,
        flat,
        labels.flatten()[flat],
        bases,
        index,
        num_targets=len(target[supervised].unique()),
        num_supervised=int(row.loss_mask.sum()),
    )

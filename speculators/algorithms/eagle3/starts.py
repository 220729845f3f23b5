"""Where drafting can start when the newest token is read beside its predecessor's state."""

from __future__ import annotations

from jaxtyping import Bool, Int
from torch import Tensor

from speculators.algorithms.anchors import anchor_candidates


def start_candidates(
    loss_mask: Bool[Tensor, "sequence"], document_ids: Int[Tensor, "sequence"]
) -> Bool[Tensor, "sequence"]:
    """Mark tokens that can be a block's anchor and are not the first of their document."""
    found = anchor_candidates(loss_mask, document_ids)
    found[1:] &= document_ids[1:] == document_ids[:-1]
    found[:1] = False
    return found

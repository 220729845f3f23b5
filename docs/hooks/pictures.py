"""Pictures drawn from the code when the site is built."""

from __future__ import annotations

import torch

from speculators.attention.layout import BlockLayout, MaskRule
from speculators.attention.picture import draw_mask

_DOCUMENTS = [0] * 9 + [1] * 7
_ANCHORS = [3, 6, 12]


def pictures() -> dict[str, str]:
    """Return every picture: name -> SVG."""
    rules = {
        "full": MaskRule(),
        "window": MaskRule(window=4),
        "causal": MaskRule(causal=True),
    }
    return {f"mask_{name}": draw_mask(_row(), rule) for name, rule in rules.items()}


def _row() -> BlockLayout:
    """Return two documents in one row, with two blocks in the first and one in the second."""
    documents = torch.tensor(_DOCUMENTS)
    positions = torch.cat([torch.arange(_DOCUMENTS.count(i)) for i in (0, 1)])
    anchors = torch.tensor(_ANCHORS)
    return BlockLayout(anchors, len(_ANCHORS), documents, positions, block_size=4)

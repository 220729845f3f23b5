"""The mask of anchored blocks as a picture: what each slot sees, drawn from the mask itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from speculators.attention.layout import BlockLayout, MaskRule
from speculators.attention.masks import dense_mask

_CELL = 16
_LEFT, _TOP = 74, 44
_TOKEN, _SLOT, _EMPTY = "#2f6fde", "#d9700f", "#8a93a01f"


def draw_mask(layout: BlockLayout, rule: MaskRule, labels: Sequence[str] | None = None) -> str:
    """Return the mask as an SVG text: a row for each query, a column for each key.

    Context tokens a slot sees are blue, slots of its own block orange. Ink follows the page.

    Args:
        layout: blocks of a short packed row; the whole grid is drawn.
        rule: window and causality.
        labels: text over each token column; None numbers them.
    """
    visible = dense_mask(layout, rule).tolist()
    tokens, keys = layout.sequence_length, layout.sequence_length + layout.num_slots
    names = [str(index) for index in range(tokens)] if labels is None else list(labels)
    slots = [str(index % layout.block_size) for index in range(layout.num_slots)]
    width, height = _LEFT + keys * _CELL + 8, _TOP + len(visible) * _CELL + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'role="img" font-family="sans-serif" font-size="9" fill="currentColor">',
        f"<title>{layout.num_blocks} blocks of {layout.block_size} slots over {tokens} tokens: "
        "what each slot sees</title>",
        _text(_LEFT, 12, "tokens of the row (by document)", anchor="start"),
        _text(_LEFT + tokens * _CELL, 12, "slots of the blocks", anchor="start"),
        *(_text(_column(i), _TOP - 5, name) for i, name in enumerate([*names, *slots])),
        *_rows(layout, visible),
        *_borders(layout, keys),
        "</svg>",
    ]
    return "\n".join(parts)


def _rows(layout: BlockLayout, visible: list[list[bool]]) -> Iterator[str]:
    asking, anchors = layout.queries_per_block, layout.anchors.tolist()
    for query, row in enumerate(visible):
        block, slot = divmod(query, asking)
        top = _TOP + query * _CELL
        if slot == 0:
            yield _text(2, top + 11, f"anchor {anchors[block]}", anchor="start")
        yield _text(_LEFT - 6, top + 11, str(slot + layout.first_query), anchor="end")
        for key, sees in enumerate(row):
            own = _TOKEN if key < layout.sequence_length else _SLOT
            yield _square(_LEFT + key * _CELL, top, own if sees else _EMPTY)


def _borders(layout: BlockLayout, keys: int) -> Iterator[str]:
    """Yield a line wherever a document or a block begins."""
    documents = layout.document_ids.tolist()
    edges = [index + 1 for index, (a, b) in enumerate(pairwise(documents)) if a != b]
    edges += range(layout.sequence_length, keys, layout.block_size)
    bottom = _TOP + layout.num_queries * _CELL
    for edge in edges:
        x = _LEFT + edge * _CELL - 1
        yield _line(x, 18, x, bottom)
    for block in range(1, layout.num_blocks):
        y = _TOP + block * layout.queries_per_block * _CELL - 1
        yield _line(0, y, _LEFT + keys * _CELL, y)


def _column(key: int) -> float:
    return _LEFT + key * _CELL + _CELL / 2 - 1


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def _square(x: float, y: float, fill: str) -> str:
    size = _CELL - 2
    return f'<rect x="{x}" y="{y}" width="{size}" height="{size}" rx="2" fill="{fill}"/>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="currentColor" stroke-opacity=".35"/>'

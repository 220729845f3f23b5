"""Where in a row's tokens a prefix of its text ends, and which turns can share a row.

The text of a prompt is a prefix of the text of prompt and answer, but its *tokens* need not be a
prefix of theirs: a merge may reach across the border. Only token ids decide here (data
specification, section 3, method P). Tokenising every prefix anew would make preparation quadratic
in the turns; instead the prefix is tokenised from its last special token on, because tokenizers
treat the text between special tokens separately. These short tails repeat, so they are remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Int

from speculators.data.template import Tokenized, VerifierTokenizer

SequenceT = TypeVar("SequenceT", str, Sequence[int])


@dataclass(frozen=True)
class Border:
    """End of a prefix among tokens.

    Attributes:
        index: tokens the prefix and the row have in common.
        leftover: text of the prefix's tokens beyond those; empty where the prefix is exact.
    """

    index: int
    leftover: str

    @property
    def is_exact(self) -> bool:
        """Whether the prefix's tokens are a prefix of the row's."""
        return not self.leftover


def find_border(tokenizer: VerifierTokenizer, row: Tokenized, text: str, prefix: str) -> Border:
    """Return where the tokens of `prefix` end among the tokens of a row.

    Args:
        tokenizer: made `row`.
        row: the row's tokens.
        text: the row's text.
        prefix: rendered text that begins as `text` does.
    """
    common = len(prefix) if text.startswith(prefix) else common_prefix(text, prefix)
    for index, character in reversed(row.anchors):
        if character < common:
            border = _compare(tokenizer, row, index, tokenizer.tail_ids(prefix[character:]))
            if border.is_exact:
                return border
            break
    # Tokenise the whole prefix: without special tokens there is no shortcut, and an inexact
    # border must be certain.
    return _compare(tokenizer, row, 0, tokenizer.tokenize([prefix])[0].input_ids)


def _compare(
    tokenizer: VerifierTokenizer, row: Tokenized, first: int, tail: Int[np.ndarray, "tail"]
) -> Border:
    there = row.input_ids[first : first + len(tail)]
    different = np.flatnonzero(there != tail[: len(there)])
    same = int(different[0]) if len(different) else len(there)
    if same == len(tail):
        return Border(first + same, "")
    return Border(first + same, tokenizer.decode(tail[same:].tolist()) or "\ufffd")


def common_prefix(a: str, b: str) -> int:
    """Length of the longest common prefix, by bisection."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def fewest_rows(whole: Sequence[SequenceT], heads: Sequence[SequenceT]) -> list[list[int]]:
    """Group turns into the fewest rows that show each turn its own serving prefix.

    Turn i may stand in the row of a later turn k if its head opens that row.

    Args:
        whole: per turn, the row that ends with it (text or token ids).
        heads: per turn, that row up to the end of the turn.

    Returns:
        Per row the turns in it, ascending; the last one gives the row.
    """
    rows: list[list[int]] = []
    for turn in reversed(range(len(whole))):
        head = heads[turn]
        for row in reversed(rows):
            if whole[row[-1]][: len(head)] == head:
                row.insert(0, turn)
                break
        else:
            rows.append([turn])
    return rows[::-1]

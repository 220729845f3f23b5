"""An audit of the loss mask that does not use it: whose text do supervised tokens spell?

The contents of the turns are looked up in the rendered text, one after another, and the tokens
under them are counted. Supervised user tokens would mean that the mask is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool

from speculators.data.template import Tokenized
from speculators.data.types import Turn

RoleTokens: TypeAlias = dict[str, tuple[int, int]]
"""By role: tokens of the contents, and how many of them are supervised. `template`: the rest."""


def count_roles(
    turns: Sequence[Turn], text: str, row: Tokenized, mask: Bool[np.ndarray, "token"]
) -> RoleTokens:
    """Count the tokens of each role in one row.

    Args:
        turns: the turns shown in the row.
        text: rendered text of the row.
        row: its tokens.
        mask: its loss mask.

    Returns:
        Counts by role; empty where the tokenizer does not say where its tokens stand. Contents
        that the template changes beyond stripping are counted under `template`.
    """
    encoding = row.encoding
    if encoding is None:
        return {}
    shift = len(row.input_ids) - len(encoding)
    counts: RoleTokens = {}
    cursor = rest = supervised = 0
    for turn in turns:
        content = turn.content.strip()
        begin = text.find(content, cursor) if content else -1
        if begin < 0:
            continue
        cursor = begin + len(content)
        first = encoding.char_to_token(begin)
        last = encoding.char_to_token(cursor - 1)
        if first is None or last is None:
            continue
        inside = mask[first + shift : last + shift + 1]
        tokens, marked = counts.get(turn.role, (0, 0))
        counts[turn.role] = (tokens + len(inside), marked + int(inside.sum()))
        rest, supervised = rest + len(inside), supervised + int(inside.sum())
    counts["template"] = (len(mask) - rest, int(mask.sum()) - supervised)
    return counts


def add_roles(total: RoleTokens, more: RoleTokens) -> None:
    """Add counts to `total`, in place."""
    for role, (tokens, supervised) in more.items():
        before = total.get(role, (0, 0))
        total[role] = (before[0] + tokens, before[1] + supervised)

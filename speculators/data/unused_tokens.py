"""Embedding rows that no text uses: candidates for the drafter's mask token."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from jaxtyping import Bool
from torch import Tensor

_RESERVED = re.compile(r"reserved|unused|extra_id|mask|dummy|placeholder", re.IGNORECASE)


def unused_token_ids(
    vocab_size: int,
    num_tokens: int,
    used: Bool[Tensor, "vocab"],
    special_tokens: Mapping[int, str],
    *,
    unk_token_id: int | None = None,
    forbidden: Collection[int] = (),
) -> list[int]:
    """Return rows of the embedding that never occur in the data, best choice first.

    Rows without a token come first (no text can ever produce them), ascending; then special
    tokens reserved for such purposes; then the unknown token; then tokens the data does not
    contain, from the highest id down.

    Args:
        vocab_size: rows of the embedding, V.
        num_tokens: one more than the highest id of the tokenizer.
        used: tokens that occur anywhere in the data.
        special_tokens: added tokens by id.
        unk_token_id: the unknown token, if there is one.
        forbidden: ids with a meaning of their own (begin, end, end of turn, padding).
    """
    free = ~used
    free[list(forbidden)] = False
    without_token = range(num_tokens, vocab_size)
    reserved = [i for i, name in special_tokens.items() if _RESERVED.search(name)]
    unknown = [] if unk_token_id is None else [unk_token_id]
    # A special token that the data lacks may still steer the verifier: plain ones come first.
    others = sorted(range(min(num_tokens, vocab_size)), key=lambda i: (i in special_tokens, -i))
    ordered = dict.fromkeys([*without_token, *sorted(reserved), *unknown, *others])
    is_free = free.tolist()
    return [index for index in ordered if index < vocab_size and is_free[index]]

"""Tokens of one tokenizer as those of another, by the text they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from speculators.data.template import VerifierTokenizer

_LEAD = "a"
"""Text in front of a token, so that a space at its beginning is kept."""
_BROKEN = "\ufffd"
"""What part of a character decodes to."""


def map_tokens(
    old: VerifierTokenizer,
    new: VerifierTokenizer,
    num_rows: int,
    same: Iterable[tuple[int | None, int | None]] = (),
) -> Int[Tensor, "old_vocab"]:
    """Return the token of `new` for every token of `old`, -1 where there is none.

    Ordinary tokens correspond when they decode to the same text, however their files spell it;
    special tokens when they have the same name; parts of characters when they are spelled alike.
    No two tokens get the same one.

    Args:
        old: the tokenizer to map from.
        new: the tokenizer to map to.
        num_rows: length of the result: rows of the old verifier's embedding.
        same: pairs of ids that correspond by their part (begin, end, padding) where nothing else
            does.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for index, meaning in _meanings(new):
        places.setdefault(meaning, []).append(index)
    found = torch.full((num_rows,), -1, dtype=torch.int64)
    taken: set[int] = set()

    def pair(index: int, candidates: list[int]) -> None:
        free = [i for i in candidates if i not in taken]
        if free and index < num_rows and found[index] < 0:
            spelled = old.raw_token(index)
            chosen = next((i for i in free if new.raw_token(i) == spelled), free[0])
            found[index] = chosen
            taken.add(chosen)

    for index, meaning in _meanings(old):
        pair(index, places.get(meaning, []))
    for index, other in same:
        if index is not None and other is not None:
            pair(index, [other])
    return found


def _meanings(tokenizer: VerifierTokenizer) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield every token with its kind and what it stands for."""
    lead = tokenizer.tail_ids(_LEAD).tolist()
    start = len(tokenizer.decode(lead))
    special = tokenizer.special_tokens
    for index in range(tokenizer.num_tokens):
        raw = tokenizer.raw_token(index)
        if index in special:
            yield index, ("special", special[index])
        elif raw is not None:
            text = tokenizer.decode([*lead, index])[start:]
            broken = _BROKEN in text or not text
            yield index, ("spelling", raw) if broken else ("text", text)

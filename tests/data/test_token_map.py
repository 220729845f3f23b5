"""Tokens of one tokenizer as those of another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from speculators.data.template import VerifierTokenizer
from speculators.data.token_map import map_tokens


@pytest.fixture
def bytewise(make_fast: Callable[..., Any]) -> VerifierTokenizer:
    """A byte-level tokenizer: a space in front of a word is spelled with another letter."""
    return VerifierTokenizer(make_fast(None), None)


def metaspace(words: list[str], special: list[str]) -> VerifierTokenizer:
    """Return a tokenizer that spells a space in front of a word as sentencepiece does."""
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=special[0]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    names = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    return VerifierTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **names), None)


def test_a_tokenizer_maps_to_itself(bytewise: VerifierTokenizer) -> None:
    size = bytewise.num_tokens
    assert map_tokens(bytewise, bytewise, size + 3).tolist() == [*range(size), -1, -1, -1]


def test_spelling_does_not_matter_but_text_does(bytewise: VerifierTokenizer) -> None:
    words = ["\u2581the", "the", "\u2581nosuchword", "\u2581over"]
    special = ["<unk>", "<s>", "<|end_of_text|>"]
    new = metaspace(words, special)
    found = map_tokens(bytewise, new, bytewise.num_tokens)
    pairs = {
        bytewise.raw_token(old): new.raw_token(index)
        for old, index in enumerate(found.tolist())
        if index >= 0
    }
    assert pairs["\u0120over"] == "\u2581over"  # byte-level files write a space as this letter
    assert pairs["<|end_of_text|>"] == "<|end_of_text|>"
    assert "\u2581nosuchword" not in pairs.values()
    back = map_tokens(new, bytewise, new.num_tokens)
    kept = (found >= 0).nonzero().flatten()
    assert back[found[kept]].tolist() == kept.tolist()


def test_tokens_that_play_the_same_part_correspond(bytewise: VerifierTokenizer) -> None:
    new = metaspace(["\u2581the"], ["<unk>", "<s>", "</s>"])
    ids = bytewise.special_tokens
    begin = next(i for i, name in ids.items() if name == "<|begin_of_text|>")
    end = next(i for i, name in ids.items() if name == "<|end_of_text|>")
    found = map_tokens(bytewise, new, bytewise.num_tokens, [(begin, 1), (end, 2), (None, 0)])
    assert (int(found[begin]), int(found[end])) == (1, 2)
    assert not (found == 0).any()


def test_no_two_tokens_get_the_same_one(bytewise: VerifierTokenizer) -> None:
    new = metaspace(["\u2581the", "the", "\u2581over"], ["<unk>", "<s>", "</s>"])
    found = map_tokens(bytewise, new, bytewise.num_tokens)
    taken = found[found >= 0].tolist()
    assert taken
    assert len(set(taken)) == len(taken)

"""The draft vocabulary: which tokens a drafter can propose, and the two maps files carry."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from speculators.errors import CheckpointError, ConfigError

_KEY = "speculator.draft_vocab_size"


@dataclass(frozen=True)
class DraftVocabulary:
    """Verifier token ids a drafter can propose, ascending (draft-vocabulary specification).

    Attributes:
        ids: target id of every draft row, strictly ascending.
        vocab_size: rows of the verifier's embedding, V.
    """

    ids: Int[Tensor, "draft_vocab"]
    vocab_size: int

    def __post_init__(self) -> None:
        """Hold the invariants: 1 <= Vd <= V, ids strictly ascending and inside [0, V)."""
        ids = self.ids
        if ids.ndim != 1 or ids.dtype != torch.int64 or not 1 <= len(ids) <= self.vocab_size:
            raise ConfigError(
                f"{_KEY}={len(ids)}: must lie between 1 and the verifier's "
                f"{self.vocab_size} embedding rows"
            )
        if int(ids[0]) < 0 or int(ids[-1]) >= self.vocab_size or bool((ids.diff() <= 0).any()):
            raise ConfigError(
                f"draft vocabulary: ids must ascend strictly inside 0..{self.vocab_size - 1}"
            )

    @classmethod
    def full(cls, vocab_size: int) -> DraftVocabulary:
        """Return the identity: every token can be drafted."""
        return cls(torch.arange(vocab_size), vocab_size)

    @classmethod
    def from_maps(
        cls, d2t: Int[Tensor, "draft_vocab"], t2d: Bool[Tensor, "vocab"]
    ) -> DraftVocabulary:
        """Read the maps of a checkpoint.

        Raises:
            CheckpointError: the two maps contradict each other.
        """
        ids = torch.arange(len(d2t)) + d2t.cpu().long()
        if not torch.equal(ids, t2d.cpu().bool().nonzero().flatten()):
            raise CheckpointError(
                "draft vocabulary: d2t and t2d name different tokens (d2t must hold offsets: "
                "target id = draft id + d2t[draft id])"
            )
        return cls(ids, len(t2d))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_full(self) -> bool:
        """Whether every verifier token can be drafted."""
        return len(self) == self.vocab_size

    @property
    def d2t(self) -> Int[Tensor, "draft_vocab"]:
        """Offsets: target id = draft id + d2t[draft id]."""
        return self.ids - torch.arange(len(self))

    @property
    def t2d(self) -> Bool[Tensor, "vocab"]:
        """Whether a target id can be drafted."""
        mask = torch.zeros(self.vocab_size, dtype=torch.bool)
        mask[self.ids] = True
        return mask

    def draft_ids(self) -> Int[Tensor, "vocab"]:
        """Return the draft id of every target id, -1 where it cannot be drafted."""
        table = torch.full((self.vocab_size,), -1, dtype=torch.int64)
        table[self.ids] = torch.arange(len(self))
        return table

    @property
    def fingerprint(self) -> str:
        """sha256 of the ids as little-endian int64."""
        return hashlib.sha256(self.ids.numpy().astype("<i8").tobytes()).hexdigest()


def require_size(size: int, vocab_size: int) -> None:
    """Refuse a size that no vocabulary of the verifier can have.

    Raises:
        ConfigError: it is no part of the vocabulary.
    """
    if not 1 <= size <= vocab_size:
        raise ConfigError(f"{_KEY}={size}: must lie between 1 and the verifier's {vocab_size} rows")


def build_vocabulary(
    counts: Int[Tensor, "vocab"],
    size: int,
    *,
    vocab_size: int,
    num_tokens: int,
    forced_ids: Collection[int] = (),
) -> DraftVocabulary:
    """Choose the tokens a drafter can propose (draft-vocabulary specification, section 3).

    Forced ids first, then the most frequent (ties: the smaller id). If fewer were seen than
    asked for, the smallest unseen ids with a token fill up, then rows without a token. The same
    counts give the same vocabulary.

    Args:
        counts: how often each token is supervised in the training data.
        size: tokens to choose.
        vocab_size: rows of the verifier's embedding, V.
        num_tokens: one more than the highest id that has a token.
        forced_ids: tokens to keep whatever their count, such as the end of a turn.

    Raises:
        ConfigError: the size is no part of the vocabulary, or smaller than the forced ids.
    """
    require_size(size, vocab_size)
    key = f"{_KEY}={size}"
    forced = torch.tensor(sorted(set(forced_ids)), dtype=torch.int64)
    if len(forced) and not 0 <= int(forced[0]) <= int(forced[-1]) < vocab_size:
        raise ConfigError(f"{key}: forced ids must lie in 0..{vocab_size - 1}")
    if len(forced) > size:
        raise ConfigError(f"{key}: smaller than the {len(forced)} special tokens that must be kept")
    rank = counts.clone().to(torch.int64)
    rank[num_tokens:] = -1
    rank[forced] = torch.iinfo(torch.int64).max
    # A stable sort keeps the smaller id first among equals.
    order = torch.argsort(rank, descending=True, stable=True)
    return DraftVocabulary(order[:size].sort().values, vocab_size)


def forced_token_ids(
    counts: Int[Tensor, "vocab"], special_tokens: Collection[int], end_ids: Collection[int]
) -> list[int]:
    """Return the ids a draft vocabulary must hold.

    Args:
        counts: how often each token is supervised in the training data.
        special_tokens: added tokens of the tokenizer (tags, control tokens).
        end_ids: ids that end a turn; without them the last block of every answer is lost.
    """
    seen = [i for i in special_tokens if i < len(counts) and int(counts[i]) > 0]
    return sorted({*seen, *(i for i in end_ids if 0 <= i < len(counts))})

"""Conversations that were there before: equal ones, and those that share most of their words.

Near duplicates are found by MinHash (Broder 1997, On the resemblance and containment of
documents): the smallest of many hashes over a text's five-word pieces agree between two texts with
the probability of their Jaccard similarity. Texts are compared only when one band of hashes is
equal (locality-sensitive hashing), so the cost grows with the number of conversations, not with
its square.
"""

from __future__ import annotations

import hashlib
import json
from array import array

import numpy as np
from jaxtyping import UInt64

from speculators.config.schema.data import Duplicates
from speculators.data.rows import Record, TokenRow
from speculators.data.word_runs import run_hashes, words_of

PIECE_WORDS = 5
NUM_HASHES = 64
NUM_BANDS = 16
_PRIME = np.uint64((1 << 31) - 1)


def content_key(record: Record) -> bytes:
    """Return 16 bytes that equal records share: roles, texts and tools, or tokens and mask."""
    item = record.item
    if isinstance(item, TokenRow):
        content = item.input_ids.tobytes() + item.loss_mask.tobytes()
    else:
        turns = [[turn.role, turn.content.strip(), dict(turn.extra)] for turn in item.turns]
        text = json.dumps([turns, item.tools], sort_keys=True, default=str)
        content = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()


def pieces(record: Record) -> UInt64[np.ndarray, "piece"]:
    """Return a hash of every five-word piece of a record (of tokens, where it has no words)."""
    item = record.item
    if isinstance(item, TokenRow):
        words = [str(token) for token in item.input_ids.tolist()]
    else:
        words = [word for turn in item.turns for word in words_of(turn.content)]
    hashes = run_hashes(words or [""], PIECE_WORDS)
    return np.unique(hashes % _PRIME)


class DuplicateFilter:
    """Remembers what it has seen; the first of several equal conversations stays.

    Memory: 16 bytes per conversation for equal ones; about 1.5 kB for near ones.

    Args:
        policy: what counts as the same.
        similarity: near: smallest estimated Jaccard similarity of two that are the same.
    """

    def __init__(self, policy: Duplicates, similarity: float) -> None:
        self._near = policy is Duplicates.near
        self._similarity = similarity
        self._seen: set[bytes] = set()
        random = np.random.default_rng(0x6E656172)
        self._factors = random.integers(1, int(_PRIME), NUM_HASHES, dtype=np.uint64)[:, None]
        self._offsets = random.integers(0, int(_PRIME), NUM_HASHES, dtype=np.uint64)[:, None]
        self._bands: list[dict[bytes, int]] = [{} for _ in range(NUM_BANDS)]
        self._signatures = array("I")

    def reason(self, record: Record) -> str | None:
        """Return why a record is left out, or None; it is remembered then."""
        key = content_key(record)
        if key in self._seen:
            return "duplicate"
        self._seen.add(key)
        if not self._near:
            return None
        signature = self.signature(record)
        bands = [band.tobytes() for band in signature.reshape(NUM_BANDS, -1)]
        alike = {table[b] for table, b in zip(self._bands, bands, strict=True) if b in table}
        if any(self._agreement(signature, other) >= self._similarity for other in alike):
            return "near duplicate"
        number = len(self._signatures) // NUM_HASHES
        self._signatures.extend(signature.tolist())
        for table, band in zip(self._bands, bands, strict=True):
            table.setdefault(band, number)
        return None

    def signature(self, record: Record) -> UInt64[np.ndarray, "hash"]:
        """Return the smallest value of each hash over the record's pieces."""
        hashed = (self._factors * pieces(record)[None] + self._offsets) % _PRIME
        return hashed.min(axis=1)

    def _agreement(self, signature: UInt64[np.ndarray, "hash"], other: int) -> float:
        start = other * NUM_HASHES
        known = np.frombuffer(self._signatures, dtype=np.uint32)[start : start + NUM_HASHES]
        equal = float((known == signature).mean())
        del known  # the array cannot grow while a view of it lives
        return equal

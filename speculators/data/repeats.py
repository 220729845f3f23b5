"""Samples that were there before: counted, left out, and what they say about the split."""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Bool, Int

from speculators.data.report import DataReport
from speculators.data.rows import Record

REPEATED = "sample that was there before"
HELD_OUT = "also in data.validation_path: not trained on"


class Repeats:
    """Remembers samples by hashes of their tokens.

    Args:
        report: counts are added to it.
        once: leave out what equals an earlier sample, mask included.

    Attributes:
        links: conversation and opening of the samples that were left out as repeats; they still
            say which conversations begin alike.
    """

    def __init__(self, report: DataReport, *, once: bool) -> None:
        self._report, self._once = report, once
        self._seen: set[bytes] = set()
        self._tokens: set[bytes] = set()
        self._held_out: frozenset[bytes] = frozenset()
        self.links: list[tuple[str, bytes]] = []

    def hold_out(self) -> None:
        """Leave out, from now on, the tokens of every sample so far: those validate."""
        self._held_out = frozenset(self._tokens)

    def leaves_out(
        self, record: Record, ids: Int[np.ndarray, "token"], mask: Bool[np.ndarray, "token"]
    ) -> bool:
        """Count a sample, and return whether it is not to be used."""
        tokens, place = _hash(ids), record.origin
        if tokens in self._held_out:
            self._report.drop(HELD_OUT, f"{place}: {HELD_OUT}", asked_for=True)
            return True
        content = _hash(ids, mask)
        known = content in self._seen
        self._seen.add(content)
        self._tokens.add(tokens)
        if known and self._once:
            self._report.drop(REPEATED, f"{place}: {REPEATED}", asked_for=True)
            if record.item.conversation_id is not None:
                self.links.append((record.item.conversation_id, opening_of(ids, mask)))
            return True
        self._report.num_duplicates += known
        return False


def opening_of(ids: Int[np.ndarray, "token"], mask: Bool[np.ndarray, "token"]) -> bytes:
    """Return a hash of a sample up to the end of its first answer."""
    start = int(mask.argmax())
    rest = mask[start:]
    stop = len(ids) if rest.all() else start + int(rest.argmin())
    return _hash(ids[:stop], mask[:stop])


def _hash(*arrays: np.ndarray) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()

"""Texts as hashes of runs of words, for comparing many texts without keeping any."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt64

_WORD = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> list[str]:
    """Return the words of a text, lower case, without punctuation."""
    return _WORD.findall(text.lower())


def run_hashes(words: Sequence[str], size: int) -> UInt64[np.ndarray, "run"]:
    """Return a 64-bit hash of every run of `size` words; of all words where there are fewer.

    A polynomial in checksums of the words, modulo 2^64, mixed. The same words give the same hash
    on every machine.
    """
    codes = np.array(
        [zlib.crc32(word.encode("utf-8", "surrogatepass")) + 1 for word in words], dtype=np.uint64
    )
    size = min(size, len(codes))
    if size == 0:
        return np.empty(0, dtype=np.uint64)
    hashes = np.zeros(len(codes) - size + 1, dtype=np.uint64)
    for place in range(size):
        hashes = hashes * _BASE + codes[place : place + len(hashes)]
    hashes ^= hashes >> np.uint64(31)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    return hashes ^ (hashes >> np.uint64(29))

"""What becomes of samples without hidden states."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from speculators.config.schema.hidden_states import OnMissing
from speculators.errors import HiddenStateError
from speculators.hidden_states.types import Tokens

_log = logging.getLogger(__name__)
_NUM_WARNINGS = 10
_WARN_EVERY = 1000


@dataclass
class SourceCounts:
    """Samples a source has answered for, by where their states came from.

    Attributes:
        stored: read from the store.
        remembered: kept in memory from an earlier pass.
        generated: computed.
        left_out: answered with None.
    """

    stored: int = 0
    remembered: int = 0
    generated: int = 0
    left_out: int = 0


def store_advice(path: Path | str) -> str:
    """Return what to do when reading a store holds training up."""
    return (
        f"reading {path} is slower than training: put the store on a faster disk, or fill one of "
        "half the bytes with hidden_states.store_dtype=float8_e4m3fn"
    )


class MissingStates:
    """Applies `on_missing` to samples that cannot be had (hidden-states specification, section 7).

    Args:
        on_missing: skip, warn or error; generate is the source's own business.
        where: what was looked through, for messages.
    """

    def __init__(self, on_missing: OnMissing, where: str) -> None:
        self.on_missing = on_missing
        self.where = where
        self._warned: set[str] = set()

    def leave_out(self, sample: Tokens) -> None:
        """Take note that a sample is left out.

        Warnings come once per sample; after the first ten, one for every thousand.

        Raises:
            HiddenStateError: policy is `error`.
        """
        if self.on_missing is OnMissing.error:
            raise HiddenStateError(
                f"hidden_states.on_missing=error: sample {sample.sample_id} has no states in "
                f"{self.where}; fill the store, or use skip, warn or generate"
            )
        if self.on_missing is not OnMissing.warn or sample.sample_id in self._warned:
            return
        self._warned.add(sample.sample_id)
        count = len(self._warned)
        if count <= _NUM_WARNINGS:
            _log.warning("sample %s has no states in %s: left out", sample.sample_id, self.where)
        elif count % _WARN_EVERY == 0:
            _log.warning("%d samples have no states in %s: left out", count, self.where)

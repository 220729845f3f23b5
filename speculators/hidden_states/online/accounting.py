"""Samples that had to be left out: counted in the stream's order, written down, and limited."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from pathlib import Path

from speculators.config.schema.hidden_states import FetchConfig
from speculators.errors import HiddenStateOutageError

_log = logging.getLogger(__name__)
_FEWEST = 20
_NUM_WARNINGS = 10


class LeftOut:
    """Keeps account of samples whose states could not be had.

    Fed in the order of the stream, so that the same samples stop a run whatever the network does.

    Args:
        settings: how many may be left out.
        record: file that gets one JSON line for each, or None.
    """

    def __init__(self, settings: FetchConfig, record: Path | None) -> None:
        self.count = 0
        self._settings = settings
        self._record = record
        self._delivered = 0
        self._in_a_row = 0
        self._reasons: Counter[str] = Counter()

    def delivered(self) -> None:
        """Count a sample that could be had."""
        self._delivered += 1
        self._in_a_row = 0

    def add(self, sample_id: str, reason: str) -> None:
        """Count a sample that could not.

        Raises:
            HiddenStateOutageError: there were too many.
        """
        self.count += 1
        self._in_a_row += 1
        self._reasons[reason] += 1
        if self.count <= _NUM_WARNINGS:
            _log.warning("sample %s is left out: %s", sample_id, reason)
        self._write(sample_id, reason)
        settings, total = self._settings, self._delivered + self.count
        if self._in_a_row >= settings.max_consecutive_bad:
            raise HiddenStateOutageError(
                f"{self._in_a_row} samples in a row could not be had "
                f"(hidden_states.fetch.max_consecutive_bad): {self._summary()}"
            )
        if self.count > max(_FEWEST, settings.max_bad_fraction * total):
            raise HiddenStateOutageError(
                f"{self.count} of {total} samples could not be had (more than "
                f"hidden_states.fetch.max_bad_fraction={settings.max_bad_fraction:g}): "
                f"{self._summary()}"
            )

    def _write(self, sample_id: str, reason: str) -> None:
        if self._record is None:
            return
        line = json.dumps({"id": sample_id, "reason": reason, "time": time.time()})
        try:
            self._record.parent.mkdir(parents=True, exist_ok=True)
            with self._record.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._record, error)
            self._record = None

    def _summary(self) -> str:
        common = "; ".join(f"{n} x {reason}" for reason, n in self._reasons.most_common(3))
        where = "" if self._record is None else f"; all of them: {self._record}"
        return f"{common}{where}"

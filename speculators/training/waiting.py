"""How much of the time training waits for its data, and what to do when it is too much."""

from __future__ import annotations

import time
from collections.abc import Mapping

from speculators.training.rows import RowSource

_STARVING_SHARE = 0.1
_STARVING_SECONDS = 10.0
_AGAIN_SECONDS = 600.0
_RATES = {
    "received_tokens": "server_tokens_per_second",
    "received_bytes": "server_bytes_per_second",
}


class Waiting:
    """Watches the step loop.

    Args:
        source: where rows come from.
    """

    def __init__(self, source: RowSource) -> None:
        self._source = source
        self._before: Mapping[str, float] = {}
        self._seconds = self._waited = self._starved = 0.0
        self._advised: float | None = None

    def add(self, seconds: float, waited: float, *, first: bool) -> None:
        """Take in one step.

        Args:
            seconds: of the whole step.
            waited: of them, for rows.
            first: whether the step opened the stream of rows, which no prefetch can spare.
        """
        self._seconds += seconds
        self._waited += waited
        self._starved += 0.0 if first else waited

    def report(self) -> dict[str, float]:
        """Return the gauges since the last report, and begin anew.

        `idle_share` is the share of wall time in which the step loop waited and the device had
        nothing to do; rates are per second of wall time.
        """
        now, seconds = self._source.gauges(), max(self._seconds, 1e-9)
        rates = {
            rate: (now[total] - self._before.get(total, 0.0)) / seconds
            for total, rate in _RATES.items()
            if total in now
        }
        found = {"wait_seconds": self._waited, "idle_share": self._waited / seconds, **rates, **now}
        if found["idle_share"] <= _STARVING_SHARE:
            self._starved = 0.0
        self._before, self._seconds, self._waited = now, 0.0, 0.0
        return found

    def advice(self, found: Mapping[str, float]) -> str | None:
        """Return one line when training has starved for a while; now and then, not always.

        Args:
            found: the last report.
        """
        now = time.monotonic()
        recently = self._advised is not None and now - self._advised < _AGAIN_SECONDS
        if self._starved < _STARVING_SECONDS or recently:
            return None
        self._advised, self._starved = now, 0.0
        share = found["idle_share"]
        return f"training waits {share:.0%} of the time for hidden states: {self._source.advice()}"


def waiting_text(found: Mapping[str, float]) -> str:
    """Return a report in the few words of a progress line."""
    parts = [f"waits {found['idle_share']:.0%}"]
    if found.get("queue_samples"):
        parts.append(f"queue {found['queue_ready']:.0f}/{found['queue_samples']:.0f}")
    if "in_flight" in found:
        rate = found["server_tokens_per_second"]
        parts.append(f"{found['in_flight']:.0f} requests  servers {rate:,.0f} tokens/s")
    return "  ".join(parts)

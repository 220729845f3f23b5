"""Says which process of a run does not get on, and with what."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

_SHOWN_SAMPLES = 3


class Watchdog:
    """Reports a process that has been at one thing for too long; it interrupts nothing.

    Args:
        rank: of this process.
        seconds: how long is too long; None watches nothing.
        say: prints one line.
    """

    def __init__(self, rank: int, seconds: float | None, say: Callable[[str], None]) -> None:
        self._rank, self._seconds, self._say = rank, seconds, say
        self._doing, self._since = "", time.monotonic()
        self._samples: Callable[[], Sequence[str]] = tuple
        self._reported = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        """Start watching."""
        if self._seconds is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop watching."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def at(self, doing: str, samples: Callable[[], Sequence[str]] = tuple) -> None:
        """Note what this process begins now.

        Args:
            doing: in words, to be read after `is`.
            samples: returns what it works on, should it be asked for.
        """
        self._doing, self._samples = doing, samples
        self._since, self._reported = time.monotonic(), False

    def _watch(self) -> None:
        limit = self._seconds or 0.0
        while not self._end.wait(min(1.0, limit / 4)):
            past = time.monotonic() - self._since
            if self._doing and past >= limit and not self._reported:
                self._reported = True
                samples = self._samples()
                shown = ", ".join(samples[:_SHOWN_SAMPLES])
                more = len(samples) - _SHOWN_SAMPLES
                of = f" ({shown}{f' and {more} more' if more > 0 else ''})" if shown else ""
                self._say(f"rank {self._rank} has been {self._doing}{of} for {past:.0f} s")

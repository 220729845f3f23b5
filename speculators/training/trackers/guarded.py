"""A tracker in a thread of its own: it may raise or hang, training goes on."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable

from speculators.training.trackers.base import Tracker

THREAD = "tracker"
"""Names the threads begin with. One that is still there at the end of a command hangs."""

_GLANCE_SECONDS = 0.02
_LONGEST_REASON = 300

Action = Callable[[Tracker], None]


class GuardedTracker:
    """Hands actions over, in order and without waiting; after the first failure it does nothing.

    Args:
        name: the choice, `tracker=<name>`.
        tracker: the tracker behind.
        timeout_seconds: longest that one action may take.
        warn: called once, with one line, from the thread that owns this object.
    """

    def __init__(
        self, name: str, tracker: Tracker, timeout_seconds: float, warn: Callable[[str], None]
    ) -> None:
        self.name = name
        self._timeout, self._warn = timeout_seconds, warn
        self._actions: queue.SimpleQueue[Action | None] = queue.SimpleQueue()
        self._problem: str | None = None
        self._busy_since: float | None = None
        self._given_up = False
        self._thread = threading.Thread(
            target=self._serve, args=(tracker,), name=f"{THREAD} {name}", daemon=True
        )
        self._thread.start()

    def do(self, action: Action) -> None:
        """Have something done after everything before it."""
        if self._works():
            self._actions.put(action)

    def wait_for(self, event: threading.Event) -> None:
        """Wait until an action has set `event`, or none ever will."""
        while self._works() and not event.wait(_GLANCE_SECONDS):
            pass

    def close(self) -> None:
        """Wait until everything is done, or hopeless."""
        self._actions.put(None)
        while self._works() and self._thread.is_alive():
            self._thread.join(_GLANCE_SECONDS)
        self._works()  # the last action may have been the one that failed

    def _serve(self, tracker: Tracker) -> None:
        while (action := self._actions.get()) is not None:
            self._busy_since = time.monotonic()
            try:
                action(tracker)
            except BaseException as error:  # anything a third party raises, sys.exit included
                self._problem = f"{type(error).__name__}: {_first_line(error)}"
                return
            self._busy_since = None

    def _works(self) -> bool:
        """Whether there is hope; the first time there is none, say so."""
        if self._given_up:
            return False
        since, problem = self._busy_since, self._problem
        if problem is None and since is not None and time.monotonic() - since > self._timeout:
            problem = f"no answer for {self._timeout:g} seconds (tracker.timeout_seconds)"
        if problem is None:
            return True
        self._given_up = True
        with contextlib.suppress(Exception):  # the screen may be gone: no reason to stop either
            self._warn(
                f"tracker={self.name}: {problem}; training goes on without it, metrics.jsonl has "
                "everything"
            )
        return False


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else "no message")[:_LONGEST_REASON]

"""SIGINT and SIGTERM: finish the step, save, leave with 128 + signal."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from speculators.errors import SpeculatorsError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptError(SpeculatorsError):
    """Training stopped because a signal asked for it; a checkpoint was saved.

    Args:
        number: the signal.
        step: steps done.
        checkpoint: folder of the checkpoint, as shown to the user.
    """

    def __init__(self, number: int, step: int, checkpoint: str) -> None:
        self.exit_code = 128 + number
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}; saved {checkpoint}; "
            "the same command goes on from there"
        )


class StopRequest:
    """Listens for signals inside a `with` block.

    Args:
        insist: a second signal acts at once, as without us; otherwise it changes nothing.

    Attributes:
        signal: the signal that came, or None.
    """

    def __init__(self, *, insist: bool = True) -> None:
        self._insist = insist
        self.signal: int | None = None
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopRequest:
        """Take over the handlers; only the main thread of a process may."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the handlers back."""
        self._give_back()

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        if self._insist:
            self._give_back()

    def _give_back(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)

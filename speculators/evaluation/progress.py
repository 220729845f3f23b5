"""Progress bar of an evaluation: prompts, tokens per second, acceptance so far, time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from speculators.console import open_console


class DecodingProgress:
    """A bar that shows nothing where there is no terminal.

    Args:
        total: prompts.
        console: where to draw; None makes one on standard error.
        enabled: False never draws.
    """

    def __init__(self, total: int, console: Console | None, *, enabled: bool) -> None:
        console = console or open_console(stderr=True)
        self._progress = Progress(
            TextColumn("[bold]decoding"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("prompts  {task.fields[rate]:.0f} tok/s  tau {task.fields[tau]:.2f}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (enabled and console.is_terminal),
        )
        self._task = self._progress.add_task("decoding", total=total, rate=0.0, tau=1.0)
        self._tokens = self._drafts = self._accepted = 0
        self._start = time.perf_counter()

    def __enter__(self) -> DecodingProgress:
        self._progress.start()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def advance(self, tokens: int, drafts: int, accepted: int) -> None:
        """Count one prompt: its answer tokens, its drafts and their accepted tokens."""
        self._tokens += tokens
        self._drafts += drafts
        self._accepted += accepted
        self._progress.update(
            self._task,
            advance=1,
            rate=self._tokens / max(time.perf_counter() - self._start, 1e-9),
            tau=1 + self._accepted / max(self._drafts, 1),
        )

"""How far extraction is: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn

from speculators.hidden_states.types import HiddenStates

_PLAIN_SECONDS = 10.0


class ExtractProgress:
    """Counts what was delivered and shows rate, bytes and time left.

    The time left is that of the tokens left, not of the samples: their lengths differ.

    Args:
        console: where to draw.
        num_samples: to be delivered.
        num_tokens: theirs.

    Attributes:
        samples: delivered.
        tokens: delivered.
        num_bytes: of their states, as they are read.
        left_out: samples that could not be had.
        seconds: since the start; stands still at the end.
    """

    def __init__(self, console: Console, num_samples: int, num_tokens: int) -> None:
        self.samples = self.tokens = self.num_bytes = self.left_out = 0
        self.seconds = 0.0
        self._console = console
        self._num_samples, self._num_tokens = num_samples, num_tokens
        self._bar = Progress(
            TextColumn("extracting"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=max(1, num_tokens), text="")

    @property
    def tokens_per_second(self) -> float:
        """Rate since the start."""
        return self.tokens / max(self.seconds, 1e-9)

    def __enter__(self) -> ExtractProgress:
        """Start the clock."""
        self._began = self._said = time.perf_counter()
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Clear the bar."""
        self.seconds = time.perf_counter() - self._began
        self._bar.stop()

    def add(self, states: HiddenStates | None) -> None:
        """Count a sample."""
        if states is None:
            self.left_out += 1
        else:
            self.samples += 1
            self.tokens += len(states.last)
            self.num_bytes += states.aux.nbytes + states.last.nbytes
        now = time.perf_counter()
        self.seconds = now - self._began
        text = self._text()
        self._bar.update(self._task, completed=self.tokens, text=text)
        if not self._console.is_terminal and now - self._said >= _PLAIN_SECONDS:
            self._said = now
            self._console.print(f"extracting  {text}", soft_wrap=True)

    def result(self) -> dict[str, float]:
        """Return what was counted."""
        names = ("seconds", "tokens_per_second", "samples", "tokens", "num_bytes", "left_out")
        return {name: getattr(self, name) for name in names}

    def _text(self) -> str:
        left = (self._num_tokens - self.tokens) / max(self.tokens_per_second, 1e-9)
        minutes, seconds = divmod(round(left), 60)
        done = self.samples + self.left_out
        return (
            f"{done:,}/{self._num_samples:,} samples  {self.tokens_per_second:,.0f} tokens/s  "
            f"{decimal(self.num_bytes)}  {minutes}:{seconds:02} left"
        )

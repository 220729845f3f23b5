"""What a person sees of a run: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from speculators.console import open_console

_PLAIN_SECONDS = 10.0
SHOWN = {
    ("train", "loss"): "loss {:.3f}",
    ("train", "block_acceptance_length"): "tau {:.2f} (blocks)",
    ("validation", "loss"): "validation loss {:.3f}",
    ("validation", "acceptance_length"): "tau {:.2f} (walk)",
    ("validation", "forecast_acceptance_length"): "{:.2f} expected at the end",
    ("validation", "forecast_acceptance_length_ci95"): "({:.2f} to {:.2f})",
}
"""Kind of line and metric -> how it is shown, in this order; a metric that a line lacks is not."""


class TrainingProgress:
    """Steps done, steps per second, time left, loss and acceptance length.

    Args:
        total_steps: of the whole run.
        first_step: steps done before this start.
        console: where to draw; None writes to standard error.
    """

    def __init__(self, total_steps: int, first_step: int, console: Console | None = None) -> None:
        self._console = console or open_console(stderr=True)
        self._total, self._first, self._step = total_steps, first_step, first_step
        self._values: dict[tuple[str, str], str] = {}
        self._status = ""
        self._unsaid = False
        self._bar = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[rate]}  {task.fields[values]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(
            "training", total=total_steps, completed=first_step, rate="", values=""
        )
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> TrainingProgress:
        """Start drawing."""
        self._start = self._last_line = time.monotonic()
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen."""
        self._bar.stop()
        if self._unsaid:
            self._say_step()

    def advance(self, step: int) -> None:
        """Show that `step` steps are done."""
        self._step = step
        self._bar.update(self._task, completed=step, rate=self._rate())

    def status(self, text: str) -> None:
        """Show `text` behind the values, in place of the one before."""
        self._status = text
        self._bar.update(self._task, values=self._shown())

    def _shown(self) -> str:
        values = [self._values[key] for key in SHOWN if key in self._values]
        return "  ".join([*values, *([self._status] if self._status else [])])

    def show(self, line: Mapping[str, Any]) -> None:
        """Take loss and acceptance length from a line of metrics.

        Without a terminal, training lines are printed at most every ten seconds, validation lines
        always, and the last line of either kind in the end.
        """
        for (kind, name), form in SHOWN.items():
            if line.get("kind") != kind:
                continue
            value = line.get(name)
            self._values.pop((kind, name), None)
            if isinstance(value, float | int | list):
                values = value if isinstance(value, list) else [value]
                self._values[kind, name] = form.format(*values)
        self._bar.update(self._task, values=self._shown())
        if self._console.is_terminal:
            return
        self._unsaid = True
        due = time.monotonic() - self._last_line >= _PLAIN_SECONDS
        if due or line.get("kind") == "validation":
            self._say_step()

    def _say_step(self) -> None:
        self._unsaid, self._last_line = False, time.monotonic()
        step, left = f"step {self._step}/{self._total}", _duration(self._seconds_left())
        self.say(f"{step}  {self._shown()}  {self._rate()}  {left} left")

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        self._console.print(text, soft_wrap=True)

    def _per_second(self) -> float:
        return (self._step - self._first) / max(time.monotonic() - self._start, 1e-9)

    def _seconds_left(self) -> float:
        rate = self._per_second()
        return (self._total - self._step) / rate if rate > 0 else float("inf")

    def _rate(self) -> str:
        rate = self._per_second()
        return f"{rate:.2f} steps/s" if rate >= 1 or rate == 0 else f"{1 / rate:.2f} s/step"


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

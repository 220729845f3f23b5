"""Metrics: summed on the device, divided once, one JSON line each.

`metrics.jsonl` holds only what is a function of configuration, data and seed, so that the file of
a run that was killed and resumed is equal to that of an undisturbed one. Rates and durations go
to `timing.jsonl`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from jaxtyping import Float, Num
from torch import Tensor

from speculators.algorithms.base import Output
from speculators.conversion.durable import flush_file, replace_text
from speculators.errors import CheckpointError
from speculators.training.ranks import Ranks

METRICS_FILE = "metrics.jsonl"
TIMING_FILE = "timing.jsonl"


class MetricSums:
    """Sums of several forward passes, without waiting for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, output: Output) -> None:
        """Take in the loss and every metric of one output."""
        self._put("loss", output.loss_sum, output.divisor)
        for name, value in output.sums.items():
            self._put(name, value, output.counts[name])

    def add_value(self, name: str, value: float, like: Tensor) -> None:
        """Take in one number to be averaged; `like` names the device of the others."""
        self._put(name, like.new_full((), value), like.new_ones(()))

    def values(self, ranks: Ranks | None = None) -> dict[str, float | None]:
        """Return sum / count of every metric over all ranks, None where the count is 0."""
        state = merged_states((ranks or Ranks()).gather(self.state()))
        sums, counts = state["sums"], state["counts"]
        return {name: sums[name] / count if count else None for name, count in counts.items()}

    def clear(self) -> None:
        """Start anew."""
        self._sums, self._counts = {}, {}

    def state(self) -> dict[str, dict[str, float]]:
        """Return plain numbers, exact in JSON, for a checkpoint between two lines."""
        names = list(self._sums)
        numbers = [*self._sums.values(), *self._counts.values()]
        flat = torch.stack(numbers).tolist() if numbers else []
        return {
            "sums": dict(zip(names, flat[: len(names)], strict=True)),
            "counts": dict(zip(names, flat[len(names) :], strict=True)),
        }

    def load(self, state: Mapping[str, Mapping[str, float]], device: torch.device) -> None:
        """Go on from what `state` returned."""
        kind = widest(device)
        self._sums, self._counts = (
            {k: torch.tensor(v, dtype=kind, device=device) for k, v in state[part].items()}
            for part in ("sums", "counts")
        )

    def _put(self, name: str, value: Tensor, count: Tensor) -> None:
        for table, number in ((self._sums, value), (self._counts, count)):
            number = widened(number.to(value.device))
            table[name] = table[name] + number if name in table else number


class JsonLines:
    """A file of JSON lines that survives a kill: cut to a step on resume, then appended to.

    Args:
        path: the file; made if missing.
        last_step: lines of later steps, and an unfinished line, are cut off in one piece.

    Raises:
        CheckpointError: the file holds something else than lines with a `step`.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_lines(path, last_step)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line and hand it to the system; NaN and infinity become null."""
        clean = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()
        }
        self._file.write(json.dumps(clean, allow_nan=False) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Wait until every line is on the disk: a checkpoint may not be newer than its lines."""
        self._file.flush()
        flush_file(self._path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def cut_lines(path: Path, last_step: int) -> int:
    """Remove the lines of steps after `last_step`; return how many went.

    Raises:
        CheckpointError: a finished line is not a JSON object with a `step`.
    """
    if not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for n, line in enumerate(lines, 1) if _belongs(path, n, line, last_step)]
    if len(kept) < len(lines):
        replace_text(path, "".join(kept))
    return len(lines) - len(kept)


def _belongs(path: Path, number: int, line: str, last_step: int) -> bool:
    if not line.endswith("\n"):
        return False
    try:
        return int(json.loads(line)["step"]) <= last_step
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}:{number}: is not a line of metrics; move the file away to go on"
        ) from error


def merged_states(
    states: Sequence[Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, float]]:
    """Add up what `MetricSums.state` returned on each rank."""
    merged: dict[str, dict[str, float]] = {"sums": {}, "counts": {}}
    for state in states:
        for part, table in merged.items():
            for name, value in state[part].items():
                table[name] = table.get(name, 0.0) + value
    return merged


def widest(device: torch.device) -> torch.dtype:
    """Return the number format of sums on a device; counts of tokens are exact in it."""
    return torch.float32 if device.type == "mps" else torch.float64


def widened(number: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return a number in the format of sums, where it is, without gradient."""
    return number.detach().to(widest(number.device))

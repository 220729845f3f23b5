"""What a training run reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from speculators.training.forecast import Forecast


@dataclass(frozen=True)
class TrainResult:
    """Outcome of a run, over all its starts.

    Attributes:
        steps: optimizer steps done, skipped ones included.
        epochs: passes over the rows; 1.5 is one and a half.
        best_checkpoint: folder that `checkpoint_best` names.
        last_checkpoint: newest folder.
        best_value: validation value of the best checkpoint, by `training.best_metric`.
        seconds: training, validation and saving.
        tokens: tokens seen, padding excluded.
        tokens_per_second: tokens over the time spent in steps.
        peak_memory_bytes: of the CUDA device, else of the process.
        stopped: why the run ended before its last step (`training.stop_when`), else None.
        forecast: what its last step was expected to reach; None where it got there.
    """

    steps: int
    epochs: float
    best_checkpoint: Path | None
    last_checkpoint: Path | None
    best_value: float | None
    seconds: float
    tokens: int
    tokens_per_second: float
    peak_memory_bytes: int
    stopped: str | None = None
    forecast: Forecast | None = None

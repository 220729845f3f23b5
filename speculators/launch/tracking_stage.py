"""The last stage of a tracked run: trackers are shown what came out of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speculators.training.checkpoint import CheckpointFolder
from speculators.training.metrics import METRICS_FILE
from speculators.training.result import TrainResult
from speculators.training.state import read_state
from speculators.training.trackers import Tracking
from speculators.training.trackers.delivery import read_lines

_PLACE = ("step", "epoch", "kind")


def show_outcome(
    tracking: Tracking, run_dir: Path, trained: TrainResult, result: Mapping[str, Any]
) -> None:
    """Show `result.json`, the table of checkpoints, and the plots of the report.

    Args:
        tracking: the trackers of the run.
        run_dir: the run directory, with its report.
        trained: where training ended.
        result: content of `result.json`.
    """
    step = trained.steps
    tracking.log({"kind": "result", "step": step, "epoch": trained.epochs, **result})
    tracking.table("checkpoints", checkpoint_rows(run_dir), step)
    for path in sorted((run_dir / "plots").glob("*.png")):
        tracking.image(f"plots/{path.stem}", path, step)


def checkpoint_rows(run_dir: Path) -> list[dict[str, Any]]:
    """Return one row per validation or kept checkpoint: step, name, mark of the best, numbers."""
    folder = CheckpointFolder(run_dir / "checkpoints", None)
    kept = {read_state(path).position.step: path.name for path in folder.complete()}
    best = folder.best()
    lines = read_lines(run_dir / METRICS_FILE)
    validations = {line["step"]: line for line in lines if line["kind"] == "validation"}
    names = dict.fromkeys(
        name
        for line in validations.values()
        for name, value in line.items()
        if name not in _PLACE and isinstance(value, int | float)
    )
    return [
        {
            "step": step,
            "checkpoint": kept.get(step),
            "best": "best" if best is not None and kept.get(step) == best else None,
            **{name: validations.get(step, {}).get(name) for name in names},
        }
        for step in sorted({*kept, *validations})
    ]

"""Where a run stands: everything of a checkpoint that is neither a tensor nor a setting."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speculators.errors import CheckpointError

STATE_FILE = "trainer_state.json"
_FORMAT = 1


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        epoch: 0-based number of the epoch the last step belonged to.
        row: packed rows of that epoch already trained on.
        step: optimizer steps done, skipped ones included.
        tokens: tokens seen, padding excluded.
        supervised_tokens: tokens of the loss masks seen.
    """

    epoch: int = 0
    row: int = 0
    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0


@dataclass
class TrainerState:
    """Content of `trainer_state.json` (checkpoint specification, section 2).

    Attributes:
        position: progress through the data.
        total_steps: optimizer steps of the whole run, as last planned.
        best_value: best validation value so far, by `best_metric`.
        best_step: step it was reached at.
        best_checkpoint: folder name of the checkpoint saved there.
        best_metric: what "best" means.
        curve: (step, acceptance length) of each validation.
        validation_due: the last step's validation was begun and not finished.
        bad_steps: steps skipped for NaN or infinity.
        bad_steps_in_a_row: how many of them were the last ones.
        first_bad_tensor: what was not finite in the first of them.
        seconds: time spent in training, validation and saving, over all starts.
        step_seconds: time spent in steps alone.
        peak_memory_bytes: most memory any start has needed.
        metric_sums: sums since the last line of metrics, by rank.
        saved: folder names of checkpoints this run wrote and has not deleted, oldest first.
        tracker_run_id: where the tracker files this run.
        settings: dotted key -> value, as trained with.
        fingerprints: name -> content hash of what went in.
        world_size: processes the rows are spread over.
        files: name -> bytes of every other file of the checkpoint.
    """

    position: Position = field(default_factory=Position)
    total_steps: int = 0
    best_value: float | None = None
    best_step: int | None = None
    best_checkpoint: str | None = None
    best_metric: str = ""
    curve: list[tuple[int, float]] = field(default_factory=list)
    validation_due: bool = False
    bad_steps: int = 0
    bad_steps_in_a_row: int = 0
    first_bad_tensor: str | None = None
    seconds: float = 0.0
    step_seconds: float = 0.0
    peak_memory_bytes: int = 0
    metric_sums: list[dict[str, Any]] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    tracker_run_id: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    world_size: int = 1
    files: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text of `trainer_state.json`."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"


def read_state(folder: Path) -> TrainerState:
    """Read `trainer_state.json` of a checkpoint folder.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    path = folder / STATE_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != _FORMAT:
            raise ValueError("written by another version of this package")
        values["position"] = Position(**values["position"])
        values["curve"] = [(step, length) for step, length in values.get("curve", [])]
        return TrainerState(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def is_complete(folder: Path) -> bool:
    """Whether a folder is a checkpoint that was finished and has lost nothing since.

    `trainer_state.json` is written last and lists the other files with their sizes.
    """
    try:
        files = read_state(folder).files
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (CheckpointError, OSError):
        return False

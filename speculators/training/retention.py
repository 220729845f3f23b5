"""Which checkpoints stay. Only what this run wrote is ever deleted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from speculators.training.state import STATE_FILE

NAMES = re.compile(r"\d+|step-\d+")
"""Names the trainer gives: `<epoch>` and `step-<n>`."""
_OURS = (
    "config.json",
    "model.safetensors",
    "optimizer_state_dict.pt",
    "scheduler_state_dict.pt",
    "run.yaml",
)
_OF_RANKS = "rng_state_rank*.pt"


def dispensable(saved: Sequence[str], keep_last: int | None, best: str | None) -> list[str]:
    """Return which checkpoints may go.

    Args:
        saved: folder names, oldest first.
        keep_last: how many of the newest stay; None keeps all.
        best: folder name that stays in any case.
    """
    if keep_last is None:
        return []
    kept = {*saved[-keep_last:], best}
    return [name for name in saved if name not in kept]


def delete_checkpoint(folder: Path) -> None:
    """Delete the files the trainer wrote into `folder`, and the folder if that empties it.

    The completeness mark goes first: a deletion cut short leaves no folder that looks whole.
    Files put there by someone else stay.
    """
    for path in (folder / STATE_FILE, *(folder / n for n in _OURS), *folder.glob(_OF_RANKS)):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def forget_deleted(root: Path, saved: Sequence[str]) -> list[str]:
    """Return those of `saved` that still exist under `root`."""
    return [name for name in saved if NAMES.fullmatch(name) and (root / name).is_dir()]

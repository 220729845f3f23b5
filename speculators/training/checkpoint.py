"""Checkpoint folders: written aside and renamed, servable as they are, exact to resume from.

Layout and completeness mark: checkpoint specification, sections 1 and 2. Every tensor file loads
with `weights_only=True`.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speculators.conversion.durable import (
    aside,
    new_folder,
    remove_stale,
    replace_link,
    replace_text,
)
from speculators.errors import CheckpointError
from speculators.training.retention import (
    NAMES,
    delete_checkpoint,
    dispensable,
    forget_deleted,
)
from speculators.training.spread import Spread
from speculators.training.state import STATE_FILE, TrainerState, is_complete, read_state

BEST_LINK = "checkpoint_best"
OPTIMIZER_FILE = "optimizer_state_dict.pt"
SCHEDULER_FILE = "scheduler_state_dict.pt"
RUN_FILE = "run.yaml"
_LINK_NAME = re.compile(re.escape(BEST_LINK))
_PARTS_NAME = re.compile(rf"({NAMES.pattern})\.parts")


def rng_file(rank: int) -> str:
    """Return the name of the file with the random states of one process."""
    return f"rng_state_rank{rank}.pt"


class CheckpointFolder:
    """The `checkpoints` folder of one run.

    Args:
        root: may not exist yet.
        keep_last: newest checkpoints kept beside the best; None keeps all.
    """

    def __init__(self, root: Path, keep_last: int | None) -> None:
        self.root = root
        self._keep_last = keep_last

    def remove_unfinished(self) -> list[str]:
        """Remove what killed processes of this run left half-written; return the names."""
        kinds = (NAMES, _PARTS_NAME, _LINK_NAME)
        return [name for kind in kinds for name in remove_stale(self.root, kind)]

    def parts(self, name: str) -> Path:
        """Return where ranks hand over their parts of a checkpoint; known as this process's."""
        return aside(self.root / f"{name}.parts")

    def newest(self) -> str | None:
        """Return the name of the newest complete checkpoint, by global step."""
        complete = self.complete()
        return complete[-1].name if complete else None

    def complete(self) -> list[Path]:
        """Return the complete checkpoints, oldest first by global step."""
        found = [
            (read_state(path).position.step, path.name)
            for path in (self.root.iterdir() if self.root.is_dir() else ())
            if NAMES.fullmatch(path.name) and not path.is_symlink() and is_complete(path)
        ]
        return [self.root / name for _, name in sorted(found)]

    def best(self) -> str | None:
        """Return the name of the best checkpoint; None before there is one."""
        link = self.root / BEST_LINK
        return link.resolve().name if link.exists() else None

    def incomplete(self) -> list[str]:
        """Return the names of folders that look like checkpoints but are not complete."""
        return sorted(
            path.name
            for path in (self.root.iterdir() if self.root.is_dir() else ())
            if NAMES.fullmatch(path.name) and path.is_dir() and not is_complete(path)
        )

    def free_name(self, epoch: int | None, step: int) -> str:
        """Return the name of a new checkpoint.

        The epoch's number where it ends and that is free, otherwise `step-<n>`.

        A damaged folder of that name is moved aside, never deleted.
        """
        if epoch is not None and not os.path.lexists(self.root / str(epoch)):
            return str(epoch)
        name = f"step-{step}"
        taken = self.root / name
        if os.path.lexists(taken) and not is_complete(taken):
            taken.rename(_unused(taken))
        return name

    def save(
        self,
        name: str,
        state: TrainerState,
        *,
        write_model: Callable[[Path], None],
        tensors: Mapping[str, Any],
        run_yaml: str,
        accompany: Callable[[Path], None] | None = None,
    ) -> None:
        """Write one checkpoint, point `checkpoint_best` at the best, and delete what may go.

        Args:
            name: folder name, from `free_name`.
            state: its `saved` list and `files` are brought up to date.
            write_model: writes `config.json` and `model.safetensors` into a folder.
            tensors: file name -> content, saved with `torch.save`.
            run_yaml: content of `run.yaml`.
            accompany: may add files that later commands change; the completeness mark leaves them
                out.

        Raises:
            CheckpointError: the disk is full, or the weights are not fit to be saved.
        """
        state.saved = [*forget_deleted(self.root, state.saved), name]
        with new_folder(self.root / name) as folder:
            write_model(folder)
            for file_name, content in tensors.items():
                _save(folder / file_name, content)
            (folder / RUN_FILE).write_text(run_yaml, encoding="utf-8")
            state.files = {p.name: p.stat().st_size for p in sorted(folder.iterdir())}
            if accompany is not None:
                accompany(folder)
            replace_text(folder / STATE_FILE, state.to_json())
        self.point_to_best(state)
        for old in dispensable(state.saved, self._keep_last, state.best_checkpoint):
            delete_checkpoint(self.root / old)
        state.saved = forget_deleted(self.root, state.saved)

    def point_to_best(self, state: TrainerState) -> None:
        """Let `checkpoint_best` name the best checkpoint of `state`, if it has one."""
        if state.best_checkpoint is not None and (self.root / state.best_checkpoint).is_dir():
            replace_link(self.root / BEST_LINK, state.best_checkpoint)

    def load(self, name: str, file_name: str) -> Any:
        """Read one tensor file of a checkpoint onto the CPU, without running code from it.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        path = self.root / name / file_name
        try:
            # Mapped: of ranks that each take their part, all read the same pages.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{path}: is missing or damaged ({reason}); move the folder away to go on from "
                "the checkpoint before it"
            ) from error


def load_master(
    parameters: Mapping[str, Tensor], master: Mapping[str, Tensor], spread: Spread
) -> None:
    """Copy saved fp32 weights into the parameters of the same names, spread as those are.

    Raises:
        CheckpointError: names or shapes differ.
    """
    wrong = sorted(
        name
        for name in parameters.keys() | master.keys()
        if name not in parameters
        or name not in master
        or parameters[name].shape != master[name].shape
    )
    if wrong:
        raise CheckpointError(
            f"{OPTIMIZER_FILE}: weights do not fit the drafter: {', '.join(wrong[:6])}"
            + (f" and {len(wrong) - 6} more" if len(wrong) > 6 else "")
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(spread.place(master[name], parameter))


def _save(path: Path, content: Any) -> None:
    try:
        torch.save(content, path)
    except RuntimeError as error:  # torch reports a full disk this way
        raise CheckpointError(
            f"{path.name}: cannot be written, the disk may be full (torch: "
            f"{str(error).splitlines()[0]}); make room or choose another output_dir and start again"
        ) from error


def _unused(path: Path) -> Path:
    number = 1
    while os.path.lexists(path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    return path.with_name(f"{path.name}.damaged-{number}")

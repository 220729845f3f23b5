"""The folder of prepared data: written aside, complete when it appears."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from speculators.data.prepared import MANIFEST, TRAIN, VALIDATION
from speculators.errors import DataError

COLUMNS = (
    "input_ids",
    "loss_mask",
    "seq_len",
    "sample_id",
    "conversation_id",
    "source",
    "split",
    "truncated",
    "num_supervised",
)
"""Columns of the data set, in order (data specification, section 5)."""


@contextlib.contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Yield a folder beside `folder` that takes its place when the block succeeds.

    Raises:
        DataError: something else stands in its place.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{folder.name}.partial-{socket.gethostname()}-"
    for leftover in folder.parent.glob(f"{stem}*"):
        if not _is_alive(leftover.name.removeprefix(stem)):
            shutil.rmtree(leftover, ignore_errors=True)
    partial = folder.parent / f"{stem}{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        try:
            partial.rename(folder)
        except OSError as error:
            # Another process was faster: the same inputs give the same data.
            if not (folder / MANIFEST).exists():
                raise DataError(
                    f"{folder}: in the way, and no prepared data (no {MANIFEST}): remove it"
                ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return int(process) != os.getpid()


def read_arrow(path: Path) -> Any:
    """Return a stream file as a table, memory-mapped."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def count_tokens(
    part: Path, trains: Bool[np.ndarray, "sample"], vocab_size: int
) -> tuple[Int[np.ndarray, "vocab"], Bool[np.ndarray, "vocab"]]:
    """Return counts of supervised training tokens, and which tokens occur at all."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    used = np.zeros(vocab_size, dtype=bool)
    row = 0
    for batch in read_arrow(part).to_batches():
        ids = batch.column("input_ids").flatten().to_numpy()
        mask = batch.column("loss_mask").flatten().to_numpy() == 1
        side = np.repeat(trains[row : row + len(batch)], batch.column("seq_len").to_numpy())
        counts += np.bincount(ids[mask & side], minlength=vocab_size)
        used[ids] = True
        row += len(batch)
    return counts, used


def save_dataset(
    part: Path, folder: Path, conversation_ids: list[str], validates: Bool[np.ndarray, "sample"]
) -> None:
    """Write the data set into `folder`, with what is known only when all rows are."""
    import datasets

    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        table = datasets.Dataset.from_file(str(part))
        table = table.add_column("conversation_id", conversation_ids)
        table = table.add_column("split", np.where(validates, VALIDATION, TRAIN).tolist())
        table.select_columns(list(COLUMNS)).save_to_disk(str(folder))
    finally:
        if not quiet:
            datasets.enable_progress_bars()

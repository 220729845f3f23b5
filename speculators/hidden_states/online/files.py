"""One file of a server: wait, read, remove (hidden-states specification, section 4)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from pathlib import Path

from torch import Tensor

from speculators.hidden_states.online.failures import NoFileError, StuckLockError
from speculators.hidden_states.online.reading import (
    OPEN_FLAGS,
    is_complete,
    open_regular,
    read_tensors,
)
from speculators.hidden_states.online.transfer import SUFFIX

_FIRST_POLL_SECONDS, _LAST_POLL_SECONDS = 0.001, 0.05


class HeldFile:
    """A complete file, open, under a shared lock where the server uses locks.

    Args:
        path: the file.
        file: its open descriptor.
        lock: that of its lock, or None.

    Attributes:
        size: its length in bytes.
    """

    def __init__(self, path: str, file: int, lock: int | None) -> None:
        self.size = os.fstat(file).st_size
        self._path, self._file, self._lock = path, file, lock

    def load(self) -> dict[str, Tensor]:
        """Return its tensors.

        Raises:
            BadStatesError: not a complete safetensors file.
        """
        return read_tensors(self._file, self.size)

    def remove(self) -> None:
        """Remove file and lock and close them; to be called once."""
        _remove(self._path)
        os.close(self._file)
        if self._lock is not None:
            _remove(f"{self._path}.lock")
            os.close(self._lock)


async def wait_for_file(path: str, timeout_seconds: float) -> HeldFile:
    """Wait until the server finished writing, and keep the lock.

    Without a lock file, a file is finished when its length is what its header says.

    Raises:
        NoFileError: writing ended without a file, or nothing came before the deadline.
        StuckLockError: still being written at the deadline.
        HiddenStateError: file or lock may not be read.
    """
    deadline = time.monotonic() + timeout_seconds
    pause = _FIRST_POLL_SECONDS
    while True:
        held, locked = _try_file(path)
        if held is not None:
            return held
        if time.monotonic() >= deadline:
            if locked:
                raise StuckLockError(f"{path}.lock still locked after {timeout_seconds:g} s")
            raise NoFileError(f"no file after {timeout_seconds:g} s: {_what_is_there(path)}")
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LAST_POLL_SECONDS)


def _try_file(path: str) -> tuple[HeldFile | None, bool]:
    """Return the file if it is finished, and whether its lock is held by the server."""
    try:
        lock = open_regular(f"{path}.lock")
    except FileNotFoundError:
        return _without_lock(path), False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return HeldFile(path, open_regular(path), lock), False
    except BlockingIOError:
        os.close(lock)
        return None, True
    except FileNotFoundError:
        _remove(f"{path}.lock")
        os.close(lock)
        raise NoFileError("the server let go of the lock without writing the file") from None
    except BaseException:
        os.close(lock)
        raise


def _without_lock(path: str) -> HeldFile | None:
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return None
    if is_complete(file):
        return HeldFile(path, file, None)
    os.close(file)
    return None


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _what_is_there(path: str) -> str:
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        return f"{folder} does not exist here"
    return f"neither {name} nor its lock appeared in {folder}"


def reap(folder: Path, prefix: str, older_than_seconds: float) -> int:
    """Remove unlocked files and locks that requests left behind; return how many.

    Left behind are the files of requests whose answer never arrived: nobody else removes them.

    Args:
        folder: the transfer folder; need not exist.
        prefix: names of the files to look at begin so.
        older_than_seconds: younger ones may still be wanted by another run.
    """
    removed = 0
    now = time.time()
    for entry in _entries(folder):
        stem = entry.name.removesuffix(".lock")
        if not (entry.name.startswith(prefix) and stem.endswith(SUFFIX)):
            continue
        with contextlib.suppress(OSError):
            age = now - entry.stat(follow_symlinks=False).st_mtime
            if age >= older_than_seconds and _unlocked(folder / f"{stem}.lock"):
                os.unlink(entry.path)
                removed += 1
    return removed


def any_left(folder: Path, prefix: str) -> bool:
    """Return whether a folder holds files or locks whose names begin so."""
    return any(entry.name.startswith(prefix) for entry in _entries(folder))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, PermissionError):
        return []


def _unlocked(lock_path: Path) -> bool:
    try:
        lock = os.open(lock_path, OPEN_FLAGS)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True

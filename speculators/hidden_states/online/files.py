"""One file of a server: wait, read, remove (hidden-states specification, section 4)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import mmap
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speculators.errors import HiddenStateError
from speculators.hidden_states.online.failures import (
    BadStatesError,
    NoFileError,
    StuckLockError,
)
from speculators.hidden_states.online.transfer import SUFFIX

MAP_BYTES = 2**20
"""Larger files are mapped, not copied: a third of the time of a plain read. Smaller ones are
read, which costs less than a mapping."""

_MAX_HEADER_BYTES = 2**20
_FIRST_POLL_SECONDS, _LAST_POLL_SECONDS = 0.001, 0.05
_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I64": torch.int64,
}
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class HeldFile:
    """A complete file, under a shared lock where the server uses locks.

    Args:
        path: the file.
        lock: open descriptor of its lock, or None.
    """

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self._lock = lock

    def size(self) -> int:
        """Return its length in bytes."""
        return self.path.stat().st_size

    def load(self) -> dict[str, Tensor]:
        """Return the tensors; of a large file, pages are read when they are touched.

        Raises:
            BadStatesError: not a complete safetensors file.
            HiddenStateError: it may not be read.
        """
        with _opened(self.path) as descriptor:
            size = os.fstat(descriptor).st_size
            header, start = _read_header(descriptor, size)
            view = _content(descriptor, size)
        return {name: _tensor(name, entry, view, start, size) for name, entry in header.items()}

    def remove(self) -> None:
        """Remove file and lock, and let go of the lock; twice does no harm."""
        for path in (str(self.path), f"{self.path}.lock"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


async def wait_for_file(path: Path, timeout_seconds: float) -> HeldFile:
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


def _try_file(path: Path) -> tuple[HeldFile | None, bool]:
    """Return the file if it is finished, and whether its lock is held by the server."""
    try:
        lock = os.open(f"{path}.lock", _OPEN)
    except FileNotFoundError:
        return (HeldFile(path, None) if is_complete(path) else None), False
    except PermissionError as error:
        raise _forbidden(f"{path}.lock") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None, True
    if not path.exists():
        HeldFile(path, lock).remove()
        raise NoFileError("the server let go of the lock without writing the file")
    return HeldFile(path, lock), False


def _what_is_there(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path.parent} does not exist here"
    return f"neither {path.name} nor its lock appeared in {path.parent}"


def is_complete(path: Path) -> bool:
    """Return whether a file exists and is as long as its header says."""
    try:
        with _opened(path) as descriptor:
            size = os.fstat(descriptor).st_size
            header, start = _read_header(descriptor, size)
            return all(start + entry["data_offsets"][1] <= size for entry in header.values())
    except (FileNotFoundError, BadStatesError, KeyError, TypeError, IndexError):
        return False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, _OPEN)
    except PermissionError as error:
        raise _forbidden(str(path)) from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise HiddenStateError(f"{path}: is a symbolic link; it was not followed") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise HiddenStateError(f"{path}: not a regular file; it was not read")
        yield descriptor
    finally:
        os.close(descriptor)


def _forbidden(path: str) -> HiddenStateError:
    try:
        owner = f"user {os.stat(path).st_uid}"
    except OSError:
        owner = "another user"
    return HiddenStateError(
        f"{path}: permission denied: it belongs to {owner} and this process runs as user "
        f"{os.getuid()}; vLLM writes files only its own user can read, so run server and trainer "
        "as the same user"
    )


def _read_header(descriptor: int, size: int) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the entries of a safetensors header and where the data begins."""
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if size < 8 or not 0 < length <= min(size - 8, _MAX_HEADER_BYTES):
        raise BadStatesError(f"file of {size} bytes is cut off or no safetensors file")
    try:
        header = json.loads(os.pread(descriptor, length, 8))
        header.pop("__metadata__", None)
    except (ValueError, AttributeError):
        raise BadStatesError("file has no readable safetensors header") from None
    return header, 8 + length


def _content(descriptor: int, size: int) -> mmap.mmap | bytearray:
    """Return the whole file: a private mapping of a large one, a copy of a small one."""
    if size >= MAP_BYTES:
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    buffer = bytearray(size)
    read = os.preadv(descriptor, [buffer], 0)
    if read != size:
        raise BadStatesError(f"file ended after {read} of {size} bytes")
    return buffer


def _tensor(name: str, entry: Any, view: mmap.mmap | bytearray, start: int, size: int) -> Tensor:
    try:
        dtype, shape = _DTYPES[entry["dtype"]], [int(n) for n in entry["shape"]]
        first, last = (int(n) for n in entry["data_offsets"])
        count = 1
        for extent in shape:
            count *= extent
        fits = last - first == count * dtype.itemsize and first >= 0 and min(shape, default=0) >= 0
    except (KeyError, TypeError, ValueError):
        raise BadStatesError(f"tensor {name!r} has an unreadable header entry") from None
    if not fits:
        raise BadStatesError(f"tensor {name!r}: its size contradicts its shape {shape}")
    if start + last > size:
        raise BadStatesError(f"file is cut off: {size} bytes instead of {start + last}")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(view, dtype=dtype, count=count, offset=start + first).view(shape)


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
        lock = os.open(lock_path, _OPEN)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True

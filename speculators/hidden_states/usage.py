"""How many bytes a store holds: one number, shared by every process that has the store open.

It is raised before a file is written and lowered after one is gone, so a process that is killed
in between leaves it too high, never too low. Whoever opens a store that nobody else has open
counts it anew.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speculators.errors import HiddenStateError


class StoreFullError(HiddenStateError):
    """No room for a sample: the disk is full, or the store holds as much as it may."""


@contextmanager
def only_if_writable() -> Iterator[None]:
    """Leave the block where a folder may only be read."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise


class Usage:
    """The bytes of a store.

    Args:
        folder: of the store; must be writable.
        max_bytes: most it may hold; None: as much as the disk does.

    Raises:
        OSError: the folder is read-only.
    """

    def __init__(self, folder: Path, max_bytes: int | None) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._count = os.open(folder / ".usage", flags, 0o644)
        self._users = os.open(folder / ".users", flags, 0o644)
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            with self.locked():
                self._set(sum(_sizes(folder)))
        fcntl.flock(self._users, fcntl.LOCK_SH)

    @property
    def num_bytes(self) -> int:
        """What the store holds now, files being written included."""
        return int(os.pread(self._count, 32, 0) or b"0")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other threads and processes from counting."""
        with self._lock:  # the lock of a file belongs to all threads that share it
            fcntl.flock(self._count, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._count, fcntl.LOCK_UN)

    def missing(self, size: int) -> int:
        """Return how many bytes must go before `size` more fit."""
        return 0 if self.max_bytes is None else max(0, self.num_bytes + size - self.max_bytes)

    def add(self, size: int) -> None:
        """Count bytes, negative for those that are gone; inside `locked`."""
        self._set(max(0, self.num_bytes + size))

    def close(self) -> None:
        """Let others count anew."""
        os.close(self._count)
        os.close(self._users)

    def _set(self, value: int) -> None:
        os.pwrite(self._count, b"%-20d" % value, 0)


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.glob("[0-9a-f][0-9a-f]/*.safetensors"):
        try:
            yield path.stat().st_size
        except FileNotFoundError:
            continue

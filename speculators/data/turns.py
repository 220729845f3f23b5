"""One process at a time, where several would do the same work: the others wait and find it done."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Enter the block for `path` alone; who has to wait says so.

    The lock is a file beside `path`, `.<name>.lock`; it ends with the process that holds it. Where
    a disk knows no locks the block is entered at once, so what is written there has to stand it.

    Args:
        path: what is made inside the block; its folder is created when missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(f".{path.name}.lock")
    lock = _take(place, path)
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        os.close(lock)


def _take(place: Path, path: Path) -> int:
    while True:
        lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _wait_for(lock, path)
            # Who held it before us has removed its file: then others lock a new one.
            if _is(lock, place):
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _is(lock: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), place.stat())
    except FileNotFoundError:
        return False


def _wait_for(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.warning("%s: another process is making it; waiting", path)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise

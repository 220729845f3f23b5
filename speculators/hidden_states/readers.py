"""Who reads a store, and what nobody needs any more.

Every run that reads a store keeps a file in it, locked while the run lives: what it will ask for,
what it needs next, what it is done with. Room is made only by removing what every living run is
done with or never wants; a run that could not have a sample computed again gives up nothing.
"""

from __future__ import annotations

import fcntl
import os
import threading
import uuid
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

TEMPORARY = ".writing-"
"""Names of files that are not whole yet begin so."""

_WANTS, _NEEDS, _DONE, _EVERYTHING, _KEEPS = "?", "+", "-", "*", "!"


class ReaderLog:
    """What one run says of itself.

    Args:
        folder: of the store.
        wanted: ids it will ask for; None: any.
        gives_up: whether it can have a sample computed again.

    Raises:
        OSError: the folder is read-only.
    """

    def __init__(self, folder: Path, wanted: Collection[str] | None, *, gives_up: bool) -> None:
        name = uuid.uuid4().hex
        (folder / ".readers").mkdir(exist_ok=True)
        temporary, self._path = folder / f"{TEMPORARY}{name}", folder / ".readers" / name
        self._file: int | None = os.open(
            temporary, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644
        )
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._lock = threading.Lock()
        lines = [_EVERYTHING] if wanted is None else [_WANTS + name for name in wanted]
        self._write([*lines, *([] if gives_up else [_KEEPS])])
        temporary.rename(self._path)  # seen only when locked: an unlocked one is a dead one

    def needs(self, sample_ids: Collection[str]) -> None:
        """Say what is needed next."""
        self._write([_NEEDS + name for name in sample_ids])

    def done(self, sample_ids: Collection[str]) -> None:
        """Say what was needed and was used."""
        self._write([_DONE + name for name in sample_ids])

    def close(self) -> None:
        """Need nothing any more; twice does no harm."""
        with self._lock:
            file, self._file = self._file, None
        if file is not None:
            self._path.unlink(missing_ok=True)
            os.close(file)

    def _write(self, lines: Collection[str]) -> None:
        with self._lock:
            if lines and self._file is not None:
                os.write(self._file, "".join(f"{line}\n" for line in lines).encode())


class _Reader:
    """What another run's file says, read as it grows."""

    def __init__(self) -> None:
        self._offset = 0
        self._wanted: set[str] = set()
        self._everything = self._keeps = False
        self._needed: Counter[str] = Counter()
        self.done: set[str] = set()

    def read(self, file: int) -> None:
        content = b""
        while part := os.pread(file, 2**20, self._offset + len(content)):
            content += part
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode().splitlines():
            self._take(line[0], line[1:])

    def _take(self, kind: str, name: str) -> None:
        if kind == _WANTS:
            self._wanted.add(name)
        elif kind == _NEEDS:
            self._needed[name] += 1
        elif kind == _DONE:
            self._needed[name] = max(0, self._needed[name] - 1)
            self.done.add(name)
        self._everything |= kind == _EVERYTHING
        self._keeps |= kind == _KEEPS

    def allows(self, name: str) -> bool:
        """Return whether this run can do without a sample for now."""
        if self._needed[name] > 0:
            return False
        wants = self._everything or name in self._wanted
        return not wants or (name in self.done and not self._keeps)


class Readers:
    """The living runs that read a store; what they say is read only when room is needed.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / ".readers"
        self._known: dict[str, _Reader] = {}

    def done_with(self) -> Iterator[str]:
        """Yield the ids that somebody used and that everybody can do without."""
        living = self._living()
        used = {name for reader in living for name in reader.done}
        yield from (name for name in used if all(reader.allows(name) for reader in living))

    def _living(self) -> list[_Reader]:
        found = {}
        for path in self._folder.glob("*"):
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)  # its run has ended without a word
            except BlockingIOError:
                found[path.name] = self._known.get(path.name) or _Reader()
                found[path.name].read(file)
            finally:
                os.close(file)
        self._known = found
        return list(found.values())

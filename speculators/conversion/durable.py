"""Files and folders that are whole or not there: written aside, flushed, renamed.

Checkpoint specification, section 1: `<name>.tmp-<pid>` is filled, every file and the folder are
flushed to the disk, then the rename makes it visible. A process that dies leaves at most a name
of this form behind, which `remove_stale` clears once the process is gone.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speculators.errors import CheckpointError

_ASIDE = re.compile(r"^(?P<name>.+)\.tmp-(?P<pid>\d+)$")


def aside(path: Path) -> Path:
    """Return the name under which this process prepares `path`."""
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


def flush_file(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Write a text file in one piece: readers see the old content or the new one.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    prepared = aside(path)
    with _explained(path):
        try:
            prepared.write_text(text, encoding="utf-8")
            flush_file(prepared)
            prepared.replace(path)
            flush_file(path.parent)
        finally:
            prepared.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a folder aside and give it its name at the end; on any error nothing stays behind.

    Args:
        target: final name; must not exist.

    Yields:
        The folder to fill.

    Raises:
        CheckpointError: the name is taken, the disk is full or the folder cannot be written.
    """
    prepared = aside(target)
    with _explained(target):
        if os.path.lexists(target):
            raise CheckpointError(f"{target}: exists already, and is not overwritten")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(prepared, ignore_errors=True)
        prepared.mkdir()
        try:
            yield prepared
            for path in sorted(prepared.rglob("*")):
                flush_file(path)
            flush_file(prepared)
            prepared.rename(target)
            flush_file(target.parent)
        finally:
            shutil.rmtree(prepared, ignore_errors=True)


def replace_link(link: Path, target: str) -> None:
    """Point a symbolic link at `target`, relative to its own folder, in one piece.

    Raises:
        CheckpointError: something that is not a link has the name.
    """
    if link.exists() and not link.is_symlink():
        raise CheckpointError(
            f"{link}: is not a link made by training; move it away, the name is needed for the "
            f"link to {target}"
        )
    if link.is_symlink() and os.readlink(link) == target:
        return
    prepared = aside(link)
    with _explained(link):
        prepared.unlink(missing_ok=True)
        prepared.symlink_to(target)
        prepared.replace(link)
        flush_file(link.parent)


def remove_stale(folder: Path, names: re.Pattern[str]) -> list[str]:
    """Remove what dead processes left unfinished in `folder`.

    Args:
        folder: where to look; may not exist.
        names: final names that are ours; everything else stays untouched.

    Returns:
        The names removed, ascending.
    """
    removed: list[str] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _ASIDE.match(path.name)
        if match is None or names.fullmatch(match["name"]) is None or _runs(int(match["pid"])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path.name)
    return removed


def _runs(pid: int) -> bool:
    # Our own number on a leftover was another process's: this one has only begun to look.
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"{target}: cannot be written: {reason}; nothing half-written was left, "
            "make room or choose another output_dir and start again"
        ) from error

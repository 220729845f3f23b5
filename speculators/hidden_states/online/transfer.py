"""The folder through which servers hand over their files, and which paths in it are touched.

A path in a server's answer is a claim, not a fact: it is mapped, resolved through every symbolic
link, and must lie inside the folder before anything is opened or removed. Imports no torch, so
that the server command can use it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from speculators.errors import HiddenStateError

RAM_DISK = Path("/dev/shm")
"""Memory shown as a folder, on Linux."""

SUFFIX = ".safetensors"


def default_folders() -> tuple[Path, Path]:
    """Return this user's folder on the ram disk and the one in the temporary directory."""
    name = f"speculators-{os.getuid()}"
    return RAM_DISK / name, Path(tempfile.gettempdir()) / name


def choose_folder(configured: str | None, needed_bytes: int) -> Path:
    """Return the folder a server is told to write into.

    Args:
        configured: `hidden_states.fetch.transfer_path`.
        needed_bytes: room wanted; a ram disk with less is passed over.
    """
    if configured is not None:
        return Path(configured).expanduser().absolute()
    ram, disk = default_folders()
    return ram if _free_bytes(RAM_DISK) >= needed_bytes else disk


def free_bytes(folder: Path) -> int:
    """Return what can still be written to a folder's file system; 0 where there is none."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return _free_bytes(folder)


def _free_bytes(folder: Path) -> int:
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        return 0
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize


def make_private(folder: Path) -> None:
    """Create the folder, for its owner alone.

    Raises:
        HiddenStateError: it cannot be made, or somebody else owns it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise HiddenStateError(
            f"hidden_states.fetch.transfer_path={folder}: cannot be created "
            f"({error.strerror}); give a folder you can write to"
        ) from error
    if owner != os.getuid():
        raise HiddenStateError(
            f"hidden_states.fetch.transfer_path={folder}: belongs to user {owner}, not to you; "
            "give another folder"
        )


class TransferFolder:
    """Turns the paths servers name into paths that may be read and removed here.

    Args:
        configured: `hidden_states.fetch.transfer_path`; None allows both default folders.
        path_map: folders as servers name them -> as they are called here.
    """

    def __init__(self, configured: str | None, path_map: Mapping[str, str] | None = None) -> None:
        self.folders: Sequence[Path] = (
            default_folders() if configured is None else (choose_folder(configured, 0),)
        )
        self._resolved: dict[str, str] = {}
        self._map = {str(Path(k)): v for k, v in (path_map or {}).items()}

    def locate(self, server_path: str) -> str:
        """Return where a file the server named is found here, free of symbolic links.

        The folder part is resolved once: who could replace it later can write as this user.

        Raises:
            HiddenStateError: outside the folder, or the folder is not visible here.
        """
        mapped = self._mapped(server_path) if self._map else server_path
        parent, name = os.path.split(mapped)
        if "\0" in mapped or not parent.startswith("/") or not name.endswith(SUFFIX):
            raise HiddenStateError(
                f"the server named {server_path[:200]!r} as its file of hidden states: not an "
                f"absolute *{SUFFIX} path; it was not touched"
            )
        resolved = self._resolved.get(parent)
        if resolved is None:
            resolved = self._resolved[parent] = self._resolve(server_path, parent)
        return f"{resolved}/{name}"

    def _resolve(self, server_path: str, parent: str) -> str:
        found = os.path.realpath(parent)
        if not any(_inside(found, os.path.realpath(folder)) for folder in self.folders):
            raise HiddenStateError(self._outside(server_path, found))
        if not os.path.isdir(found):
            raise HiddenStateError(self._invisible(server_path, found))
        return found

    def describe_space(self) -> str:
        """Return how much is free where files are handed over."""
        return ", ".join(
            f"{folder} has {free_bytes(folder) / 2**30:.1f} GiB free"
            for folder in self.folders
            if folder.exists()
        )

    def _mapped(self, server_path: str) -> str:
        for server, here in sorted(self._map.items(), key=lambda pair: -len(pair[0])):
            if server_path == server or server_path.startswith(server.rstrip("/") + "/"):
                return here.rstrip("/") + server_path[len(server.rstrip("/")) :]
        return server_path

    def _invisible(self, server_path: str, found: str) -> str:
        parent = os.path.dirname(server_path)
        return (
            f"the server writes hidden states to {parent[:300]}, and {found[:300]} does not exist "
            "here: server and trainer must share that folder (mount it in both containers); if it "
            f"is called otherwise here, set hidden_states.fetch.path_map={{{parent}: FOLDER_HERE}}"
        )

    def _outside(self, server_path: str, found: str) -> str:
        allowed = " or ".join(str(folder) for folder in self.folders)
        parent = os.path.dirname(server_path)
        return (
            f"the server writes hidden states to {server_path[:300]} (here {found[:300]}), which "
            f"is not inside {allowed}; it was not touched. If you trust the server and this "
            f"process sees that folder, set hidden_states.fetch.transfer_path={parent}; if it is "
            f"called otherwise here, also hidden_states.fetch.path_map={{{parent}: FOLDER_HERE}}"
        )


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")

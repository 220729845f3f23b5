"""`store.json` and the folder around it: begun once, read by everyone, cleared of leftovers."""

from __future__ import annotations

import json
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

from speculators.errors import HiddenStateError
from speculators.hidden_states.identity import StoreIdentity
from speculators.hidden_states.readers import TEMPORARY

_STALE_SECONDS = 3600


def begin(path: str | Path, folder: Path, identity: StoreIdentity) -> None:
    """Write store.json unless another process just did."""
    temporary = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
    ours = (TEMPORARY, "store.json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = [e.name for e in folder.iterdir() if not e.name.startswith(ours)]
        if foreign and not (folder / "store.json").is_file():
            raise HiddenStateError(
                f"hidden_states.store_path={path}: the folder is not empty and is no store; give "
                "an empty or a new one"
            )
        temporary.write_text(json.dumps(identity.to_json(), indent=2) + "\n", encoding="utf-8")
        flush(temporary)
        # Unlike a rename, a link never replaces what another process just began.
        with suppress(FileExistsError):
            os.link(temporary, folder / "store.json")
        temporary.unlink()
    except OSError as error:
        raise HiddenStateError(
            f"hidden_states.store_path={path}: no store can be made there: {error}"
        ) from error


def read_description(path: str | Path, description: Path) -> StoreIdentity:
    """Return what a store says of itself.

    Raises:
        HiddenStateError: its description is damaged or of another version.
    """
    try:
        return StoreIdentity.from_json(json.loads(description.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise HiddenStateError(
            f"hidden_states.store_path={path}: store.json cannot be used ({error}); it was written "
            "by another version or damaged: use another folder"
        ) from error


def remove_stale(folder: Path) -> None:
    """Remove what writers that died left behind."""
    oldest = time.time() - _STALE_SECONDS
    for path in [*folder.glob(f"{TEMPORARY}*"), *folder.glob(f"*/{TEMPORARY}*")]:
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
        except FileNotFoundError:
            continue


def flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

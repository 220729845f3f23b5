"""Folders of verifiers: a local one, the tiny one of this package, or a snapshot of the Hub."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from speculators.errors import ConfigError

CONFIG_FILES = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
CODE_FILES = ("*.py",)
WEIGHT_FILES = ("*.safetensors",)
# Second copies of the weights in the publisher's own format.
_COPIES = ("consolidated*", "original/*", "metal/*", "onnx/*")


_log = logging.getLogger(__name__)
_RETRIES = "huggingface_hub.utils._http"


@dataclass(frozen=True)
class Location:
    """Where a verifier's files are.

    Attributes:
        name: hub id, or the absolute folder.
        folder: local folder with the files asked for.
        revision: commit of the Hub, None for a local folder.
    """

    name: str
    folder: Path
    revision: str | None


def locate(
    name_or_path: str, revision: str | None = None, patterns: Sequence[str] = CONFIG_FILES
) -> Location:
    """Find a verifier's folder, downloading the files that match `patterns` where needed.

    Args:
        name_or_path: `tiny`, a local folder, or a hub id.
        revision: branch, tag or commit of the Hub; not used for folders.
        patterns: files to download.

    Raises:
        ConfigError: no such folder; the Hub does not know or does not give the model; no network
            and no copy in the cache.
    """
    if name_or_path == "tiny":
        from speculators.verifier import tiny

        folder = Path(tiny.folder()).resolve()
        return Location(str(folder), folder, None)
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        return Location(str(folder), folder, None)
    if name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1:
        raise ConfigError(
            f"verifier.name_or_path={name_or_path}: no such folder; give a folder with config.json "
            "and *.safetensors, or a hub id such as Qwen/Qwen3-8B"
        )
    snapshot = _snapshot(name_or_path, revision, patterns)
    return Location(name_or_path, snapshot, snapshot.name)


def _snapshot(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    at = f"verifier.name_or_path={repository}"
    try:
        with _few_words(repository):
            return Path(
                snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=list(patterns),
                    ignore_patterns=list(_COPIES),
                )
            )
    except GatedRepoError:
        problem = "the Hub gives this model only to people who accepted its terms: accept them on "
        problem += f"https://huggingface.co/{repository}, then `hf auth login`"
    except RevisionNotFoundError:
        problem = f"the Hub has no revision {revision!r} of it; check verifier.revision"
    except RepositoryNotFoundError:
        problem = (
            "neither a folder here nor a model on the Hub; private models need `hf auth login`"
        )
    except HFValidationError:
        problem = "neither a folder here nor a possible hub id (such as Qwen/Qwen3-8B)"
    except LocalEntryNotFoundError:
        problem = (
            f"no folder of that name, and the Hub cannot be reached for revision "
            f"{revision or 'main'} ({', '.join(patterns)} not in the cache); connect once, or give "
            "the path of a downloaded folder"
        )
    except (HfHubHTTPError, OSError) as error:
        problem = f"download failed: {str(error).splitlines()[0]}; try again"
    raise ConfigError(f"{at}: {problem}")


@contextlib.contextmanager
def _few_words(repository: str) -> Iterator[None]:
    """Say once that the Hub is asked again; the library says it twice per attempt."""
    said: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        if not said:
            said.append(record.getMessage())
            _log.warning("%s: the Hub does not answer; asking again for half a minute", repository)
        return False

    logger = logging.getLogger(_RETRIES)
    logger.addFilter(note)
    try:
        yield
    finally:
        logger.removeFilter(note)

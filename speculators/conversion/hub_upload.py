"""A finished folder to a repository of the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from speculators.errors import ConfigError, LaunchError


def check_repository(repository: str) -> None:
    """Hold that a name can be one of a repository, before anything is done.

    Raises:
        ConfigError: it cannot.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(
            f"push_to_hub={repository}: must be OWNER/NAME of a hub repository"
        ) from error


def upload(folder: Path, names: Sequence[str], repository: str, *, private: bool) -> str:
    """Upload files in one commit, making the repository if need be.

    Args:
        folder: where they are.
        names: the files.
        repository: OWNER/NAME.
        private: of a repository that is made.

    Returns:
        The address of the commit.

    Raises:
        LaunchError: the Hub refuses or cannot be reached; the folder stays as it is.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(names),
            commit_message="Add drafter and model card",
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LaunchError(
            f"push_to_hub={repository}: {reason}; the folder is complete: log in with `hf auth "
            f"login`, then `hf upload {repository} {folder}`"
        ) from error
    return commit.commit_url

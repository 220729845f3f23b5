"""Where the YAML files are, and what they offer; answers without importing Hydra."""

from __future__ import annotations

from pathlib import Path

import speculators
from speculators.errors import ConfigError

HIDDEN_GROUPS = ("recipe",)
"""Folders that are composed automatically and never chosen."""


def config_folder() -> Path:
    """Return the folder of YAML files: inside the installed package, else of the checkout.

    Raises:
        ConfigError: the installation is incomplete.
    """
    package = Path(speculators.__file__).absolute().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"{package}: no conf folder inside or beside it: install the package again")


def group_choices() -> dict[str, list[str]]:
    """Return what every group offers: group -> names, both in alphabetical order."""
    groups = sorted(path for path in config_folder().iterdir() if path.is_dir())
    return {
        group.name: sorted(file.stem for file in group.glob("*.yaml"))
        for group in groups
        if group.name not in HIDDEN_GROUPS
    }


def file_comment(path: Path) -> str:
    """Return the comment that opens a YAML file: what it is, and how to run it.

    Args:
        path: the file; Hydra's package line is left out.
    """
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)

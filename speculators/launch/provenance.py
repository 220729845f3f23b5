"""What a run was started with: the whole configuration, the command, the code, the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import speculators
from speculators.config.loading import run_file
from speculators.config.schema import Config
from speculators.conversion.durable import replace_text

CONFIG_FILE = "resolved.yaml"
"""The whole configuration; Hydra starts from it again."""

PROVENANCE_FILE = "provenance.json"
"""Everything else one needs to know to get the same run."""

_PACKAGES = (
    "torch",
    "hydra-core",
    "omegaconf",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "aiohttp",
    "wandb",
    "huggingface-hub",
    "numpy",
)


def write_provenance(folder: str | Path, config: Config, argv: Sequence[str]) -> None:
    """Write `resolved.yaml` and `provenance.json` into a run directory, making it if need be.

    Args:
        folder: the run directory.
        config: what the run was started with.
        argv: the command line.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / CONFIG_FILE, run_file(config, stem=Path(CONFIG_FILE).stem))
    text = json.dumps(provenance(argv), indent=2, ensure_ascii=False)
    replace_text(folder / PROVENANCE_FILE, f"{text}\n")


def provenance(argv: Sequence[str]) -> dict[str, Any]:
    """Return the command, the code's version and state, package versions and the machine.

    Args:
        argv: the command line.
    """
    return {
        "argv": list(argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "working_directory": str(Path.cwd()),
        "speculators": speculators.__version__,
        "git": git_state(Path(speculators.__file__).parent.parent),
        "python": sys.version.split()[0],
        "packages": package_versions(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
    }


def package_versions() -> dict[str, str | None]:
    """Return the versions of the packages a run depends on; None where one is not installed."""
    return {name: _version(name) for name in _PACKAGES}


def git_state(checkout: Path) -> dict[str, Any] | None:
    """Return commit and whether there are uncommitted changes; None outside a checkout.

    Args:
        checkout: its top folder. A folder somewhere inside another repository does not count.
    """
    if not (checkout / ".git").exists():
        return None
    commit = _git(checkout, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git(checkout, "status", "--porcelain"))}


def _git(checkout: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

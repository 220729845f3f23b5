"""Small random verifiers of several families, saved as transformers saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from miniatures import save_miniature


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a family once per session and returns its folder."""
    saved: dict[str, Path] = {}

    def save(family: str, max_shard_size: str = "1GB", **changes: object) -> Path:
        key = f"{family} {max_shard_size} {sorted(changes.items())}"
        if key not in saved:
            folder = tmp_path_factory.mktemp(family)
            save_miniature(folder, family, max_shard_size, **changes)
            saved[key] = folder
        return saved[key]

    return save

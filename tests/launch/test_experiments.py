"""Every published row runs: the same recipe on the tiny verifier, for a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from speculators.config.composition import compose
from speculators.config.folder import group_choices
from speculators.launch import train


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("name", group_choices()["experiment"])
def test_trains_decodes_and_compares(name: str, tmp_path: Path, cache: Path) -> None:
    config = compose(
        "train",
        [
            f"experiment={name}",
            "debug=tiny",
            f"output_dir={tmp_path / 'run'}",
            f"cache_dir={cache}",
        ],
    )
    result = train.run(config)
    assert result["steps"] == config.training.max_steps
    assert result["lossless_prompts"] == result["num_prompts"] > 0
    assert (tmp_path / "run" / "checkpoints" / "checkpoint_best" / "model.safetensors").exists()

"""The one command with every registered algorithm: from conversations to a lossless decoding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speculators.config.composition import compose
from speculators.config.discovery import algorithms
from speculators.launch import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("every")


@pytest.mark.parametrize("name", [name for name in algorithms() if name != "dflash"])
def test_every_stage_once(name: str, folder: Path) -> None:
    """DFlash, the default, goes through every stage in the tests beside this one."""
    overrides = [f"speculator={name}", "debug=fast", "data.regenerate.enabled=false"]
    overrides += [f"output_dir={folder / name}", f"cache_dir={folder / 'cache'}"]
    overrides += ["speculator.draft_vocab_size=400"]
    result = train.run(compose("train", overrides))
    assert result["lossless_prompts"] == result["num_prompts"] == 2
    assert result["acceptance_length"] >= 1.0
    assert json.loads((Path(result["checkpoint"]) / "config.json").read_text())[
        "draft_vocab_size"
    ] == 400  # fmt: skip
    lines = [json.loads(x) for x in (folder / name / "metrics.jsonl").read_text().splitlines()]
    walked = [line for line in lines if line["kind"] == "validation"][-1]
    assert walked["acceptance_length"] >= 1.0

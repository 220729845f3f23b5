"""`vllm serve CHECKPOINT`: the same tokens as without drafting, the acceptance of this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from speculators.config.composition import compose
from speculators.errors import LaunchError
from speculators.launch import evaluate, train
from vllm.conftest import assert_same_drafts, free_port, running

NUM_PROMPTS = 16


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    """A drafter that has learnt something."""
    config = compose(
        "train",
        [
            "verifier=tiny",
            "data.max_samples=300",
            "data.regenerate.max_new_tokens=96",
            "training.sequence_length=512",
            "training.max_steps=150",
            "evaluation.enabled=false",
            f"cache_dir={folder / 'cache'}",
            f"output_dir={folder / 'run'}",
        ],
    )
    train.run(config)
    return folder / "run" / "checkpoints" / "checkpoint_best"


@pytest.fixture(scope="module")
def server(vllm: str, checkpoint: Path, folder: Path) -> Iterator[str]:
    port = free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    with running([vllm, "serve", str(checkpoint), *options], port, folder / "vllm.log") as url:
        yield url


def evaluated(folder: Path, checkpoint: Path, url: str, *more: str) -> dict[str, Any]:
    overrides = [
        f"checkpoint={checkpoint}",
        f"evaluation.endpoint={url}",
        f"evaluation.num_prompts={NUM_PROMPTS}",
        "evaluation.max_new_tokens=64",
        f"cache_dir={folder / 'cache'}",
        f"output_dir={folder / 'evaluation'}",
        *more,
    ]
    return evaluate.run(compose("evaluate", overrides))


def test_served_and_in_process_agree(
    server: str, checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(folder, checkpoint, server)
    assert found["lossless_prompts"] == NUM_PROMPTS
    assert found["mismatches"] == []
    assert found["acceptance_length"] > 1.2
    assert_same_drafts(found)
    assert "acceptance length = 1 + accepted tokens / drafts" in capsys.readouterr().out


def test_counters_alone_are_enough(server: str, checkpoint: Path, folder: Path) -> None:
    found = evaluated(folder, checkpoint, server, "evaluation.compare=false")
    assert found["acceptance_length"] > 1.2
    assert found["lossless_prompts"] is None


def test_a_server_of_another_model_is_refused(
    server: str, checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = evaluate.ServedCheckpoint
    monkeypatch.setattr(
        evaluate, "ServedCheckpoint", lambda names, *rest: find(frozenset({"other"}), *rest)
    )
    with pytest.raises(LaunchError, match="not other: another model"):
        evaluated(folder, checkpoint, server)

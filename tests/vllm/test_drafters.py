"""Every drafter vLLM has a place for, as it lies there: the verifier's tokens, our acceptance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from speculators.config.composition import compose
from speculators.launch import evaluate, train
from vllm.conftest import assert_same_drafts, serving

NUM_PROMPTS = 16
REDUCED = "speculator.draft_vocab_size=512"
CHOICES: list[list[str]] = [
    ["speculator=dflash", "speculator.num_layers=3", "speculator.target_layer_ids=[2,4]"],
    ["speculator=dflash", REDUCED],
    ["speculator=dflash", "speculator.sliding_window=16", "speculator.num_sliding_layers=2"],
    [
        "speculator=dflash", "speculator.sliding_window=16", "speculator.num_sliding_layers=2",
        "speculator.sliding_causal=true",
    ],
    ["speculator=eagle3"],
    ["speculator=eagle3", REDUCED],
    ["speculator=peagle"],
    ["speculator=peagle", REDUCED],
    [
        "speculator=eagle3", "speculator.num_layers=2", "speculator.layer_type=llama",
        "speculator.norm_before_residual=false", "speculator.norm_output=true",
        "speculator.norm_before_fc=true", "speculator.target_layer_ids=[1,3,4,5]",
    ],
    [
        "speculator=eagle3", "speculator.sliding_window=16", "speculator.fc_norm=true",
        "speculator.num_draft_tokens=5",
    ],
]  # fmt: skip


def measure(
    choices: list[str],
    vllm: str,
    cache: Path,
    folder: Path,
    *,
    steps: int,
    prompts: int,
    tokens: int,
) -> dict[str, Any]:
    """Train a drafter, serve it, and decode the same prompts there and here."""
    shared = f"cache_dir={cache}"
    settings = [*choices, shared, f"training.max_steps={steps}", "evaluation.enabled=false"]
    train.run(compose("train", [*settings, f"output_dir={folder / 'run'}"]))
    checkpoint = folder / "run" / "checkpoints" / "checkpoint_best"
    with serving(vllm, folder / "log", checkpoint) as url:
        overrides = [f"checkpoint={checkpoint}", f"evaluation.endpoint={url}", shared]
        overrides += [f"evaluation.num_prompts={prompts}", f"evaluation.max_new_tokens={tokens}"]
        return evaluate.run(
            compose("evaluate", [*overrides, f"output_dir={folder / 'evaluation'}"])
        )


@pytest.mark.parametrize("choices", CHOICES, ids=" ".join)
def test_served_as_measured(choices: list[str], vllm: str, folder: Path, tmp_path: Path) -> None:
    found = measure(
        *(choices, vllm, folder / "cache", tmp_path), steps=120, prompts=NUM_PROMPTS, tokens=64
    )
    assert found["lossless_prompts"] == NUM_PROMPTS
    assert_same_drafts(found)

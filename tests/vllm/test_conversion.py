"""A drafter served from every layout it can be written in: the same tokens, the same drafts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speculators.config.composition import compose
from speculators.launch import convert, evaluate, train
from speculators.verifier import tiny
from vllm.conftest import assert_same_drafts, serving

WORDS = ["map", "kite", "lamp", "tree", "moon", "fish", "bread", "chair", "stone", "river"]
# What the EAGLE layout can say: one Llama layer, states of (2, L // 2, L - 3).
EAGLE = ["speculator.layer_type=llama", "speculator.norm_before_residual=false"]
EAGLE += ["speculator.target_layer_ids=[2,3,4]"]
CASES = {"z_lab": ("dflash", [], 7), "eagle": ("eagle3", EAGLE, 3)}


def converted(checkpoint: Path, to: str, output: Path, *more: str) -> Path:
    asked = [f"checkpoint={checkpoint}", f"convert.to={to}", f"output_dir={output}", *more]
    convert.run(compose("convert", asked))
    return output


@pytest.mark.parametrize("layout", CASES)
def test_served_from_each_layout(layout: str, vllm: str, folder: Path, tmp_path: Path) -> None:
    algorithm, choices, num_draft_tokens = CASES[layout]
    cache = f"cache_dir={folder / 'cache'}"
    settings = [f"speculator={algorithm}", *choices, "training.max_steps=120", cache]
    settings += ["evaluation.enabled=false", f"output_dir={tmp_path / 'run'}"]
    train.run(compose("train", settings))
    own = tmp_path / "run" / "checkpoints" / "checkpoint_best"
    other = converted(own, layout, tmp_path / layout)
    number = f"convert.num_draft_tokens={num_draft_tokens}"
    back = converted(other, "speculators", tmp_path / "back", "verifier=tiny", number)
    assert (back / "model.safetensors").read_bytes() == (own / "model.safetensors").read_bytes()
    drafting = {
        "model": str(other),
        "method": algorithm,
        "num_speculative_tokens": num_draft_tokens,
    }
    beside = [tiny.folder(), "--speculative-config", json.dumps(drafting)]
    asked = tmp_path / "prompts.jsonl"
    prompts = [json.dumps({"prompt": f"How is the word {word} spelled?"}) for word in WORDS]
    asked.write_text("\n".join(prompts))
    counted = []
    for number, (checkpoint, served) in enumerate(((own, [own]), (own, beside), (back, [back]))):
        with serving(vllm, tmp_path / f"log_{number}", *served) as url:
            overrides = [f"checkpoint={checkpoint}", "verifier=tiny", f"evaluation.endpoint={url}"]
            overrides += [f"evaluation.prompts={asked}", "evaluation.max_new_tokens=96", cache]
            overrides += [f"output_dir={tmp_path / f'evaluation_{number}'}"]
            found = evaluate.run(compose("evaluate", overrides))
        assert found["lossless_prompts"] == len(WORDS)
        assert_same_drafts(found)
        counted.append((found["num_drafts"], found["acceptance_length"]))
    print(layout, counted)
    assert len(set(counted)) == 1

"""What `conf/verifier` says of each model: complete, consistent, as large as it is known to be."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest

from documents import DOCS
from miniatures import FAMILIES
from speculators.algorithms.dflash.target_layers import dflash_layer_ids
from speculators.config.composition import compose
from speculators.config.folder import group_choices
from speculators.config.schema import VerifierConfig, VerifierSizes
from speculators.verifier.layers import check_layer_ids
from speculators.verifier.sizes import num_weights, spec_of_sizes

NAMES = [name for name in group_choices()["verifier"] if name not in ("tiny", "hf", "checkpoint")]
QUANTISED = [name for name in NAMES if name.endswith("_fp8")]
PUBLISHED_LAYERS = {"qwen3_8b", "gemma4_31b"}  # those of a published drafter, not of the rule

# Billions of weights as the authors state them: all, and those one token meets. Ours count the
# embedding among the latter, which they leave out.
WEIGHTS = {
    "qwen3_0_6b": 0.6,
    "qwen3_1_7b": 1.7,
    "qwen3_4b": 4.0,
    "qwen3_8b": 8.2,
    "qwen3_14b": 14.8,
    "qwen3_32b": 32.8,
    "qwen3_30b_a3b": 30.5,
    "qwen3_235b_a22b": 235.0,
    "llama3_1_8b": 8.0,
    "llama3_1_70b": 70.6,
    "llama3_3_70b": 70.6,
    "gemma3_1b": 1.0,
    "gemma3_4b": 3.9,
    "gemma3_12b": 11.8,
    "gemma3_27b": 27.0,
    "gemma4_31b": 30.7,
    "gpt_oss_20b": 20.9,
    "gpt_oss_120b": 116.8,
    "mistral_7b": 7.25,
    "mistral_small_24b": 23.6,
    "phi4_14b": 14.7,
    "phi4_mini": 3.8,
}
ACTIVE = {"qwen3_30b_a3b": 3.3, "qwen3_235b_a22b": 22.0, "gpt_oss_20b": 3.6, "gpt_oss_120b": 5.1}


@cache
def verifier(name: str) -> tuple[VerifierConfig, VerifierSizes]:
    config = compose("train", [f"verifier={name}"]).verifier
    assert config.sizes is not None
    return config, config.sizes


@pytest.mark.parametrize("name", NAMES)
def test_every_value_can_stand(name: str) -> None:
    config, sizes = verifier(name)
    assert config.name == name
    assert config.name_or_path.count("/") == 1
    if name not in QUANTISED:
        assert re.fullmatch(r"[0-9a-f]{40}", config.revision or "")
    assert check_layer_ids(config.target_layer_ids or [], sizes.num_layers) is None
    if name.removesuffix("_fp8") not in PUBLISHED_LAYERS:
        assert config.target_layer_ids == list(dflash_layer_ids(sizes.num_layers, 5))
    assert config.mask_token_id is None or config.mask_token_id < sizes.vocab_size
    assert (config.draft_vocab_size or 1) <= sizes.vocab_size
    assert sizes.num_attention_heads % sizes.num_key_value_heads == 0
    assert sizes.model_type in FAMILIES  # so that a miniature of it is tested


@pytest.mark.parametrize("name", WEIGHTS)
def test_sizes_add_up_to_the_published_number_of_weights(name: str) -> None:
    config, sizes = verifier(name)
    spec = spec_of_sizes(config, sizes)
    assert num_weights(spec) / 1e9 == pytest.approx(WEIGHTS[name], rel=0.025)
    tables = sizes.vocab_size * sizes.hidden_size
    if name in ACTIVE:
        active = (num_weights(spec, active=True) - tables) / 1e9
        assert active == pytest.approx(ACTIVE[name], rel=0.1)
    else:
        assert num_weights(spec, active=True) == num_weights(spec)


def test_tables_are_complete() -> None:
    assert WEIGHTS.keys() == set(NAMES) - set(QUANTISED)
    text = (DOCS / "verifiers.md").read_text(encoding="utf-8")
    for name in group_choices()["verifier"]:
        base = name.removesuffix("_fp8")
        assert f"`{name}`" in text or (f"`{base}`" in text and "each with `_fp8`" in text)


@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_verifier_differs_in_its_weights_alone(name: str) -> None:
    config, _ = verifier(name)
    original, _ = verifier(name.removesuffix("_fp8"))
    assert "FP8" in config.name_or_path
    own = {"name": name, "name_or_path": config.name_or_path, "revision": None}
    assert config == replace(original, **own)

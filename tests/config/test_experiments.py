"""Published rows: every one composes, says what was published, and turns into a tiny run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from documents import DOCS
from speculators.algorithms.dflash.target_layers import dflash_layer_ids
from speculators.config.composition import compose
from speculators.config.folder import config_folder, file_comment, group_choices
from speculators.config.schema import Config, HiddenStatesMode

NAMES = group_choices()["experiment"]
WITHOUT_FIGURES = {"dflash_gemma4_31b"}

# speculator, verifier, data, optimizer.lr, epochs, row length; then what was published.
GOLDEN = {
    "dflash_ablation_anchors_fixed": (
        *("dflash", "qwen3_4b", "open_perfectblend", 6e-4, 6, 3072),
        4.94,
    ),
    "dflash_ablation_block_16_at_8": (
        *("dflash", "qwen3_4b", "open_perfectblend", 6e-4, 6, 3072),
        5.09,
    ),
    "dflash_ablation_block_8_at_16": (
        *("dflash", "qwen3_4b", "open_perfectblend", 6e-4, 6, 3072),
        5.02,
    ),
    "dflash_ablation_block_8": ("dflash", "qwen3_4b", "open_perfectblend", 6e-4, 6, 3072, 5.21),
    "dflash_ablation_features_3": ("dflash", "qwen3_4b", "open_perfectblend", 6e-4, 6, 3072, 5.38),
    "dflash_ablation_layers_3": ("dflash", "qwen3_4b", "open_perfectblend", 6e-4, 6, 3072, 5.64),
    "dflash_ablation_layers_5": ("dflash", "qwen3_4b", "open_perfectblend", 6e-4, 6, 3072, 5.99),
    "dflash_ablation_layers_8": ("dflash", "qwen3_4b", "open_perfectblend", 6e-4, 6, 3072, 6.33),
    "dflash_gemma4_31b": ("dflash", "gemma4_31b", "magpie_ultrachat", 3e-4, 5, 8192, None),
    "dflash_qwen3_4b_paper": ("dflash", "qwen3_4b", "open_perfectblend", 6e-4, 6, 3072, 6.53),
    "dflash_qwen3_8b_paper": ("dflash", "qwen3_8b", "open_perfectblend", 6e-4, 6, 3072, 6.54),
    "dflash_qwen3_8b_sharegpt_5k": ("dflash", "qwen3_8b", "sharegpt", 3e-4, 5, 8192, 1.47),
    "eagle3_llama3_1_8b_ultrachat_5k": ("eagle3", "llama3_1_8b", "ultrachat", 1e-4, 5, 8192, 1.49),
    "eagle3_qwen3_8b_sharegpt_5k": ("eagle3", "qwen3_8b", "sharegpt", 1e-4, 5, 8192, 1.45),
    "peagle_qwen3_8b_sharegpt_5k": ("peagle", "qwen3_8b", "sharegpt", 6e-4, 5, 4096, 1.53),
}


def composed(name: str, *more: str) -> Config:
    store = ["hidden_states.store_path=states"] if "llama" in name else []
    return compose("train", [f"experiment={name}", *store, *more])


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_row(name: str) -> None:
    config = composed(name)
    *golden, length = GOLDEN[name]
    training = config.training
    assert [
        config.speculator.name,
        config.verifier.name,
        config.data.name,
        config.optimizer.lr,
        training.epochs,
        training.sequence_length,
    ] == golden
    if name in WITHOUT_FIGURES:
        assert config.expected is None
        return
    assert config.expected is not None
    assert config.expected.verifier == config.verifier.name_or_path
    assert next(iter(config.expected.suites.values())).acceptance_length == length
    if "paper" in name or "ablation" in name:
        assert set(config.expected.suites) <= set(config.evaluation.suites)
        assert config.data.regenerate.enabled


@pytest.mark.parametrize("name", NAMES)
def test_it_becomes_a_tiny_run_of_the_same_thing(name: str) -> None:
    config, tiny = composed(name), composed(name, "debug=tiny")
    assert (tiny.verifier.name, tiny.data.name, tiny.expected) == ("tiny", "tiny", None)
    assert tiny.hidden_states.mode is HiddenStatesMode.embedded
    assert (tiny.training.max_steps, tiny.evaluation.suites) == (4, {})
    for own in ("target_layer_ids", "mask_token_id", "draft_vocab_size", "rope_theta"):
        if hasattr(config.speculator, own):
            setattr(config.speculator, own, getattr(tiny.speculator, own))
    assert tiny.speculator == config.speculator
    assert (tiny.optimizer, tiny.schedule) == (config.optimizer, config.schedule)


def test_three_features_are_where_the_rule_puts_them() -> None:
    config = composed("dflash_ablation_features_3")
    assert config.speculator.target_layer_ids == list(dflash_layer_ids(36, 3))


@pytest.mark.parametrize(
    "path", sorted(config_folder().rglob("*.yaml")), ids=lambda path: path.stem
)
def test_a_source_is_one_that_readers_can_find(path: Path) -> None:
    """A paper, a public project, or a page of these documents; never a note of ours."""
    comment = " ".join(line.lstrip("# ") for line in path.read_text("utf-8").splitlines())
    assert not re.search(r"Published results|[Ss]pecification, sections? \d", comment)
    for page in re.findall(r"\bdocs/[\w/]+\.md", comment):
        assert (DOCS.parent / page).exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_row_names_its_source(name: str) -> None:
    config = composed(name)
    text = file_comment(config_folder() / "experiment" / f"{name}.yaml")
    recipes = [config_folder() / "recipe" / found for found in re.findall(r"\w+_\w+\.yaml", text)]
    assert re.search(r"arXiv:\d{4}\.\d{5}|examples/train/\w+\.sh|model card", text), name
    assert all(recipe.exists() for recipe in recipes)
    assert re.search(r"[Nn]ot\s(in|stated|published)", text), "what the source does not state"
    assert config.expected is None or config.expected.source

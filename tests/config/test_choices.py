"""What the YAML files put together: every choice composes, and the published ones are exact."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import pytest

from speculators.algorithms.dflash.config import DFlashConfig, Normalization
from speculators.config.composition import compose
from speculators.config.folder import HIDDEN_GROUPS, config_folder, file_comment, group_choices
from speculators.config.schema import (
    CeLabels,
    Config,
    HiddenStatesMode,
    MuonConfig,
    ScheduleName,
    WandbConfig,
    WandbMode,
)

# What a choice cannot know and a user has to say.
NEEDED = {
    "verifier=hf": ["verifier.name_or_path=some/model", "data.path=rows.jsonl"],
    "data=jsonl": ["data.path=rows.jsonl"],
    "data=hf": ["data.name=hf"],
    "data=mixture": ["+data@data.sources.chat=sharegpt"],
}
HF = ["verifier=hf", *NEEDED["verifier=hf"]]
FILES = sorted(config_folder().rglob("*.yaml"))


def dflash(config: Config) -> DFlashConfig:
    assert isinstance(config.speculator, DFlashConfig)
    return config.speculator


def rounds() -> list[list[str]]:
    """As few command lines as name every choice of every group once."""
    groups = [[f"{group}={name}" for name in names] for group, names in group_choices().items()]
    return [_fitting([choice for choice in row if choice]) for row in zip_longest(*groups)]


def _fitting(row: list[str]) -> list[str]:
    """Let an experiment, which sets keys of one algorithm, choose that algorithm itself."""
    fixed = any(choice.startswith("experiment=") for choice in row)
    return [choice for choice in row if not (fixed and choice.startswith("speculator="))]


@pytest.mark.parametrize("choices", rounds(), ids=" ".join)
def test_every_choice_composes(choices: list[str]) -> None:
    needed = [override for choice in choices for override in NEEDED.get(choice, [])]
    if any(choice.startswith("data=") and choice != "data=jsonl" for choice in choices):
        needed = [override for override in needed if not override.startswith("data.path=")]
    config = compose("train", [*choices, *needed])
    for group, _, name in (choice.partition("=") for choice in choices):
        if group == "tracker":  # several may be chosen, so each has a node of its own
            assert list(config.tracker.chosen()) == [name for name in [name] if name != "none"]
        elif hasattr(config, group):
            chosen = getattr(config, group).name
            assert getattr(chosen, "name", chosen) == name


@pytest.mark.parametrize("name", group_choices()["speculator"])
@pytest.mark.parametrize("verifier", ["tiny", "qwen3_8b", "llama3_1_8b"])
def test_every_speculator_composes_with_a_small_and_a_large_verifier(
    name: str, verifier: str
) -> None:
    config = compose("train", [f"speculator={name}", f"verifier={verifier}"])
    assert (config.speculator.name, config.verifier.name) == (name, verifier)


def test_several_trackers_can_be_chosen() -> None:
    config = compose("train", ["tracker=[wandb,mlflow]", "tracker.wandb.mode=online"])
    assert list(config.tracker.chosen()) == ["wandb", "mlflow"]
    assert config.tracker.wandb == WandbConfig(project="speculators", mode=WandbMode.online)
    assert config.tracker.tensorboard is None


def test_prepare_composes_what_train_composes() -> None:
    config, train = compose("prepare"), compose("train")
    config.output_dir = train.output_dir
    assert config == train


def test_evaluate_leaves_the_verifier_to_the_checkpoint() -> None:
    config, train = compose("evaluate"), compose("train")
    assert config.verifier.name_or_path == "checkpoint"
    assert config.evaluation == train.evaluation
    assert compose("evaluate", ["verifier=tiny"]).verifier == train.verifier


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(config_folder())))
def test_every_file_says_what_it_is_and_how_to_run_it(path: Path) -> None:
    comment = file_comment(path)
    assert comment
    if path.parent.name not in HIDDEN_GROUPS and path.stem != "directories":
        assert "python train.py " in comment or "speculators " in comment


def test_without_arguments_it_is_a_small_run() -> None:
    config = compose("train")
    assert (config.verifier.name, config.data.name) == ("tiny", "tiny")
    assert config.hidden_states.mode is HiddenStatesMode.embedded
    assert dflash(config).num_layers == 2
    assert config.training.max_steps == 600
    assert config.speculator.target_layer_ids == config.verifier.target_layer_ids == [1, 3, 5]


def test_the_tutorial_is_two_words() -> None:
    config = compose("train", ["speculator=dflash", "verifier=qwen3_8b"])
    speculator = dflash(config)
    assert config.data.hub_id == "Aeala/ShareGPT_Vicuna_unfiltered"
    assert config.data.max_samples == 5000
    assert config.hidden_states.mode is HiddenStatesMode.online
    assert config.hidden_states.endpoints == ["http://localhost:8000/v1"]
    assert (speculator.num_layers, speculator.block_size) == (5, 8)
    assert (speculator.target_layer_ids, speculator.mask_token_id) == ([2, 18, 33], 151669)
    assert (speculator.draft_vocab_size, speculator.max_anchors) == (8192, 3072)
    assert speculator.loss.active() == {"ce": 1.0}
    assert speculator.ce_labels is CeLabels.data
    assert speculator.normalization is Normalization.weights
    assert speculator.input_noise == 0.05
    assert (config.training.epochs, config.training.sequence_length) == (5, 8192)
    assert (config.training.max_steps, config.training.clip_norm) == (None, 1.0)
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (3e-4, 0.01)
    assert config.schedule.name is ScheduleName.linear
    assert config.schedule.warmup_fraction == 0.01


def test_the_experiment_is_the_tutorial_written_out() -> None:
    config = compose("train", ["experiment=dflash_qwen3_8b_sharegpt_5k"])
    tutorial = compose("train", ["speculator=dflash", "verifier=qwen3_8b"])
    assert dflash(config).loss_decay_gamma == 4.0
    dflash(config).loss_decay_gamma = dflash(tutorial).loss_decay_gamma
    for group in ("verifier", "speculator", "data", "hidden_states", "optimizer", "schedule"):
        assert getattr(config, group) == getattr(tutorial, group)
    assert (config.evaluation.num_prompts, config.evaluation.max_new_tokens) == (80, 2048)


def test_a_verifier_brings_its_data_and_states_and_each_can_be_changed() -> None:
    config = compose("train", HF)
    assert (config.data.name, config.hidden_states.name) == ("jsonl", "embedded")
    config = compose("train", ["verifier=qwen3_8b", "data=tiny", "hidden_states=embedded"])
    assert (config.data.name, config.hidden_states.name) == ("tiny", "embedded")


def test_a_recipe_belongs_to_the_pair_that_was_chosen_in_the_end() -> None:
    experiment = "experiment=dflash_qwen3_8b_sharegpt_5k"
    assert compose("train", [experiment]).training.checkpoint_dtype.name == "bfloat16"
    config = compose("train", [experiment, "verifier=tiny", "speculator.target_layer_ids=[1,3]"])
    assert config.training.checkpoint_dtype.name == "float32"
    assert config.training.epochs == 5
    assert compose("train", HF).optimizer.lr == 6e-4


def test_the_command_line_wins() -> None:
    overrides = ["speculator.target_layer_ids=[1,3,4]", "training.max_steps=800", "optimizer.lr=1"]
    config = compose("train", [*HF, *overrides])
    assert config.speculator.target_layer_ids == [1, 3, 4]
    assert (config.training.max_steps, config.optimizer.lr) == (800, 1.0)


def test_one_learning_rate_serves_both_halves_of_muon() -> None:
    optimizer = compose("train", ["optimizer=muon", "optimizer.lr=0.002"]).optimizer
    assert isinstance(optimizer, MuonConfig)
    assert (optimizer.lr, optimizer.adamw_lr) == (0.002, 0.002)


def test_two_runs_never_share_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPECULATORS_CACHE", raising=False)
    first, second = compose("train"), compose("train")
    assert first.output_dir != second.output_dir
    assert Path(first.output_dir).parent == tmp_path / "outputs"
    assert Path(first.cache_dir) == tmp_path / "outputs" / "cache"
    monkeypatch.setenv("SPECULATORS_CACHE", "/elsewhere")
    assert compose("train").cache_dir == "/elsewhere"


def test_template_arguments_can_be_added() -> None:
    config = compose("train", ["+verifier.template_arguments.enable_thinking=false"])
    assert config.verifier.template_arguments == {"enable_thinking": False}

"""Every mistake is one line that says what, what is allowed, and what to do; all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from speculators.config.checking import check
from speculators.config.composition import Request, compose
from speculators.config.discovery import algorithms
from speculators.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"
BLOCK = "a block holds the anchor and at least one drafted token, so it must be 2 or more"


def problems(*overrides: str, command: str = "train") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(command, overrides)
    return list(caught.value.problems)


def checked(request: Request) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(request)
    return list(caught.value.problems)


# Read together, each is reported by itself.
KEYS_AND_TYPES = {
    "speculator.blocksize=4": "no such key: did you mean speculator.block_size?",
    "block_size=4": "no such key: did you mean speculator.block_size?",
    "lr=1": "no such key: did you mean optimizer.lr?",
    "speculater.block_size=4": "no such key: did you mean speculator.block_size?",
    "verifer=tiny": "no such key: did you mean verifier?",
    "experimnt=x": "no such key: did you mean experiment?",
    "speculator.loss.zz=1": "no such key: speculator.loss has "
    "ce, kl, reverse_kl, js, tv, lk_alpha, lk_hybrid",
    "seed.x=1": "seed holds a value, it has no keys",
    "tracker.wandb.mode=online": "tracker.wandb is not chosen: add tracker=wandb",
    "+seed=2": "the key exists already: drop the +",
    "+sed=2": "no such key: did you mean seed?",
    "+speculator.blocksize=2": "no such key: did you mean speculator.block_size?",
    "++speculator.blocksize=2": "no such key: did you mean speculator.block_size?",
    "~speculator.num_layers": "keys cannot be removed, only set",
    "verifier.template_arguments.enable_thinking=false": "no such key: to add it write "
    "+verifier.template_arguments.enable_thinking=false",
    "speculator.num_layers=two": "must be a whole number",
    "speculator.num_layers=1.5": "must be a whole number",
    "training.max_steps=many": "must be a whole number, or null",
    "optimizer.lr=fast": "must be a number",
    "training.resume=maybe": "must be true or false",
    "attention=flexx": "must be one of auto, flex, sdpa: did you mean flex?",
    "speculator.target_layer_ids=3": "must be a list of whole numbers, such as [1, 2], or null",
}
CHOICES = {
    "tracker=[wandb,tensorbord]": "no such choice: did you mean tensorboard? tracker offers "
    "mlflow, none, tensorboard, trackio, wandb",
    "debug=null": "to choose nothing write ~debug",
    "optimizer=adam": "no such choice: did you mean adamw? optimizer offers adamw, muon",
    "schedule=zzz": "no such choice: schedule offers constant, cosine, linear",
}
VALUES = {
    "speculator.block_size=1": BLOCK,
    "speculator.target_layer_ids=[3, 1]": "ids must ascend, as the server stores them: [1, 3]",
    "optimizer.lr=-1.0": "must be greater than 0",
    "optimizer.beta1=1.0": "must be 0 or more and below 1",
    "speculator.loss.kl=nan": "must be a finite number",
    "seed=-1": "must be 0 or more",
    "optimizer.name=muon": "names the schema: choose with optimizer=muon",
    "training.validation_fraction=1.0": "must lie between 0 and 1",
    "launcher.num_processes=2": "launcher=single runs one: use ddp",
}
OTHERS = {
    "foo": "not an override: write key=value",
    "speculator.target_layer_ids=1,2": "for a list write speculator.target_layer_ids=[1,2], "
    "for several runs add --multirun",
    "speculator.target_layer_ids=[1, 1]": "an id stands twice: ids must be distinct",
    "optimizer.name=x": "names the schema: choose with optimizer=adamw|muon",
}


EAGLE3 = {
    "speculator.block_size=8": "no such key: speculator has name, num_layers, target_layer_ids, "
    "draft_vocab_size, init, from_pretrained, pretrained_verifier, forecast_steps, loss, "
    "ce_labels, input_noise, activation_checkpointing, sliding_window, num_attention_heads, "
    "num_key_value_heads, head_dim, intermediate_size, rope_theta, layer_type, "
    "norm_before_residual, norm_before_fc, train_lm_head, num_draft_tokens, ttt_steps, ttt_decay, "
    "ttt_tokens, fc_norm, norm_output",
    "speculator.ttt_steps=0": "must be 1 or more",
    "speculator.ttt_decay=0.0": "must be greater than 0",
    "speculator.layer_type=gpt2": "must be one of llama, qwen3, or null",
}


def test_mistakes_with_another_algorithm() -> None:
    """Keys of one algorithm are not those of another; its values have ranges of their own."""
    found = problems("speculator=eagle3", "speculator.num_draft_tokens=3", *EAGLE3)
    assert sorted(found) == sorted(f"{o}: {text}" for o, text in EAGLE3.items())


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["speculator.fc_norm=true", "speculator.norm_before_fc=true"],
            "speculator.fc_norm=true: excludes norm_before_fc: choose one of the two",
        ),
        (
            ["speculator.sliding_window=64", "speculator.layer_type=llama"],
            "speculator.sliding_window=64: the serving engine honours windows only in qwen3 "
            "layers: set layer_type=qwen3",
        ),
    ],
)
def test_eagle3_settings_that_exclude_each_other(overrides: list[str], line: str) -> None:
    assert problems("speculator=eagle3", *overrides) == [line]


@pytest.mark.parametrize("mistakes", [KEYS_AND_TYPES, CHOICES, VALUES, OTHERS])
def test_every_mistake_is_one_line(mistakes: dict[str, str]) -> None:
    assert sorted(problems(*mistakes)) == sorted(f"{o}: {text}" for o, text in mistakes.items())


def test_a_choice_that_goes_on_as_typed_is_meant_first() -> None:
    (line,) = problems("speculator=eagle")
    assert line.startswith("speculator=eagle: no such choice: did you mean eagle3? ")


def test_an_unreadable_override_is_named() -> None:
    (line,) = problems("speculator.block_size=[1")
    assert line.startswith("speculator.block_size=[1: cannot be read: no viable alternative")


def test_a_sweeper_that_is_not_installed_is_named() -> None:
    (line,) = problems("hydra/sweeper=optuna_x")
    assert line.startswith("hydra/sweeper=optuna_x: no such choice: install hydra-speculators[optu")


def test_an_unknown_key_lists_what_there_is() -> None:
    (line,) = problems("zzz=1")
    assert line.startswith("zzz=1: no such key: the top level has verifier, speculator, data,")
    assert "hydra" not in line


def test_everything_wrong_is_reported_at_once() -> None:
    found = problems(
        "verifier=qwen3_8",
        "speculator.block_size=1",
        "speculator.num_layers=two",
        "training.max_stps=3",
        "optimizer.lr=-1",
        "foo",
    )
    assert found == [
        "foo: not an override: write key=value",
        "verifier=qwen3_8: no such choice: did you mean qwen3_8b? verifier offers "
        f"{', '.join(sorted(path.stem for path in (CONF / 'verifier').glob('*.yaml')))}",
        "speculator.num_layers=two: must be a whole number",
        "training.max_stps=3: no such key: did you mean training.max_steps?",
        f"speculator.block_size=1: {BLOCK}",
        "optimizer.lr=-1.0: must be greater than 0",
    ]


def test_missing_values_are_explained_beside_other_problems() -> None:
    assert problems("verifier=hf", "speculator.block_size=1") == [
        "verifier.name_or_path=???: a value is needed: Hub id, local folder, or `tiny` for the "
        "model that ships with this package.",
        f"speculator.block_size=1: {BLOCK}",
    ]


def test_a_broken_reference_is_named() -> None:
    (line,) = problems("speculator.block_size=${nowhere}")
    assert line == "speculator.block_size: Interpolation key 'nowhere' not found"


def test_evaluate_needs_a_checkpoint() -> None:
    with pytest.raises(ConfigError) as caught:
        check(Request("evaluate", ("seed=x",)), needs=("checkpoint",))
    assert list(caught.value.problems) == [
        "seed=x: must be a whole number",
        "checkpoint=null: a value is needed: Checkpoint folder (evaluate, convert, doctor).",
    ]


def test_one_of_several_keys_is_enough() -> None:
    needs = ("evaluation.prompts|data.path|data.hub_id",)
    hf = ("verifier=hf", "verifier.name_or_path=DIR")
    with pytest.raises(ConfigError) as caught:
        check(Request("evaluate", hf), needs=needs)
    assert list(caught.value.problems) == [
        "evaluation.prompts=null: a value is needed (or data.path, data.hub_id): File of prompts "
        "(`turns` or `prompt`); null takes the suites, or without any held-out conversations."
    ]
    for override in ("evaluation.prompts=FILE", "data.path=FILE", "data.hub_id=NAME"):
        check(Request("evaluate", (*hf, override)), needs=needs)


def test_empty_mapping_is_no_value() -> None:
    needs = ("data.path|data.sources",)
    hf = ("verifier=hf", "verifier.name_or_path=DIR", "data.name=x")
    with pytest.raises(ConfigError, match=r"^data\.path=null: a value is needed \(or data\.so"):
        check(Request("prepare", hf), needs=needs)
    source = ("data=mixture", "+data@data.sources.chat=ultrachat")
    check(Request("prepare", (*hf[:2], *source)), needs=needs)


def test_every_value_of_a_sweep_is_checked_before_the_first_run() -> None:
    overrides = ("speculator.block_size=8,1", "speculator=dflash,flash", "optimizer.lr=1e-3,x")
    assert checked(Request("train", overrides, multirun=True)) == [
        f"speculator.block_size=1: {BLOCK}",
        "speculator=flash: no such choice: did you mean dflash? speculator offers "
        + ", ".join(algorithms()),
        "optimizer.lr=x: must be a number",
    ]
    check(Request("train", ("training.epochs=range(1,3)", "seed=1"), multirun=True))


def test_the_axes_of_a_sweep_file_are_checked(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "defaults: [train, _self_]\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {speculator.block_size: '8,1', seed: '0,1'}}}\n"
    )
    request = Request("sweep", config_dir=str(tmp_path))
    assert checked(request) == [f"speculator.block_size=1: {BLOCK}"]
    check(Request("sweep", ("speculator.block_size=4,8",), config_dir=str(tmp_path)))


def test_runs_of_a_multirun_have_folders_of_their_own() -> None:
    assert checked(Request("train", ("output_dir=x", "seed=0,1"), multirun=True)) == [
        "output_dir=x: every run of a multirun has its own folder: give hydra.sweep.dir=FOLDER"
    ]


def test_a_config_that_is_not_there() -> None:
    assert checked(Request("train", config_dir="nowhere")) == [
        "--config-dir nowhere: no such folder"
    ]
    (line,) = checked(Request("trian"))
    assert line.startswith("Cannot find primary config 'trian'.")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("speculator: {blocksize: 4}", ("'mine'", "speculator.blocksize", "DFlashConfig")),
        ("blocksize: 4", ("'mine'", "blocksize", "Config")),
        ("training: {epochs: many}", ("'mine'", "training.epochs", "many", "Integer")),
    ],
)
def test_a_mistake_in_a_file_names_the_file(
    tmp_path: Path, content: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "mine.yaml").write_text(f"defaults: [train, _self_]\n{content}\n")
    (line,) = checked(Request("mine", config_dir=str(tmp_path)))
    assert "\n" not in line
    for word in words:
        assert word in line

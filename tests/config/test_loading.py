"""A configuration survives being written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from speculators.config.composition import Request, compose, compose_untyped
from speculators.config.discovery import algorithms
from speculators.config.loading import load_run_config, run_file, to_yaml
from speculators.errors import ConfigError

RUNS = [
    [],
    ["verifier=qwen3_8b", "optimizer=muon", "schedule=cosine", "tracker=[wandb,mlflow]"],
    ["experiment=dflash_qwen3_8b_sharegpt_5k"],
    ["+verifier.template_arguments={enable_thinking: false, tags: [a, b]}", "optimizer.lr=1e-5"],
    ["training.allow_changes=[seed,optimizer.lr]", "data.regenerate.enabled=true"],
    [r"output_dir='runs/\${seed}'", r"+verifier.template_arguments={today: '\${now'}"],
]


@pytest.mark.parametrize("overrides", RUNS, ids=lambda overrides: ",".join(overrides) or "none")
def test_a_saved_configuration_is_equal(overrides: list[str], tmp_path: Path) -> None:
    config = compose("train", overrides)
    for text in (to_yaml(config), run_file(config)):
        path = tmp_path / "resolved.yaml"
        path.write_text(text)
        assert load_run_config(path) == config


@pytest.mark.parametrize("overrides", RUNS, ids=lambda overrides: ",".join(overrides) or "none")
def test_hydra_starts_from_a_saved_configuration(overrides: list[str], tmp_path: Path) -> None:
    config = compose("train", overrides)
    (tmp_path / "resolved.yaml").write_text(run_file(config))
    again = compose_untyped(Request("resolved", ("seed=5",), config_dir=str(tmp_path)))
    assert again.problems == []
    config.seed = 5
    assert again.typed() == config
    assert again.config is not None
    assert again.config.hydra.run.dir == config.output_dir


def test_a_saved_configuration_still_knows_its_keys(tmp_path: Path) -> None:
    (tmp_path / "resolved.yaml").write_text(run_file(compose("train")))
    again = compose_untyped(
        Request("resolved", ("speculator.blocksize=4",), config_dir=str(tmp_path))
    )
    assert again.problems == [
        "speculator.blocksize=4: no such key: did you mean speculator.block_size?"
    ]


def test_paths_mean_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "tiny").mkdir()
    config = compose("train", ["data.path=rows.jsonl", "hidden_states.store_path=store"])
    assert config.data.path == str(tmp_path / "rows.jsonl")
    assert config.hidden_states.store_path == str(tmp_path / "store")
    assert config.verifier.name_or_path == "tiny", "a word, whatever folders there are"
    assert compose("train", ["data.path=no/such.jsonl"]).data.path == "no/such.jsonl"


def edited(tmp_path: Path, old: str, new: str) -> str:
    path = tmp_path / "resolved.yaml"
    text = to_yaml(compose("train"))
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_run_config(path)
    (line,) = caught.value.problems
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "block_size: 8",
            "block_size: 1",
            "speculator.block_size=1: a block holds the anchor and at least one drafted token, so "
            "it must be 2 or more",
        ),
        (
            "name: dflash",
            "name: dflesh",
            f"speculator.name=dflesh: must be one of {', '.join(algorithms())} "
            "did you mean dflash?",
        ),
        ("block_size: 8", "blocksize: 8", "speculator.blocksize: Key 'blocksize' not in"),
        ("seed: 0", "seed: x", "seed: Value 'x' of type 'str' could not be converted to Integer"),
    ],
)
def test_a_damaged_file_is_explained(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert edited(tmp_path, old, new).startswith(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file or directory"),
        ("[1, 2]", "not a saved configuration"),
        ("a: [", "not a"),
    ],
)
def test_not_a_configuration(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / "resolved.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=f"resolved.yaml: {expected}"):
        load_run_config(path)

"""The train and evaluate commands, from configuration to files, on the tiny verifier."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from speculators.config.composition import compose
from speculators.config.loading import load_run_config
from speculators.config.schema import Config
from speculators.conversion.layout import read_serving_config
from speculators.errors import CheckpointError, ConfigError, DataError
from speculators.launch import evaluate, prepare, train
from speculators.launch.data_stage import prepare_data
from speculators.launch.verifier_stage import Verifier

RESULT_KEYS = {
    "acceptance_length",
    "acceptance_rate",
    "acceptance_per_position",
    "lossless_prompts",
    "num_prompts",
    "verifier_calls_saved",
    "speedup",
    "train_seconds",
    "train_tokens_per_second",
    "peak_memory_bytes",
    "checkpoint",
}


def configured(folder: Path, name: str, *overrides: str, command: str = "train") -> Config:
    return compose(
        command,
        [
            "debug=fast",
            "data.regenerate.enabled=false",
            f"output_dir={folder / name}",
            f"cache_dir={folder / 'cache'}",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return train.run(configured(folder, "first"), ["speculators", "train"])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_everything_behind(folder: Path, result: dict[str, Any]) -> None:
    run = folder / "first"
    assert result.keys() >= RESULT_KEYS
    assert json.loads((run / "result.json").read_text()) == result
    assert result["lossless_prompts"] == result["num_prompts"] == 2
    assert result["acceptance_length"] >= 1.0
    for name in ("resolved.yaml", "provenance.json", "data_report.json", "evaluation.json"):
        assert (run / name).stat().st_size > 0
    assert "<html" in (run / "report.html").read_text()
    assert [line["step"] for line in lines(run / "metrics.jsonl") if line["kind"] == "train"] == [
        1,
        2,
        3,
        4,
    ]
    validation = [x for x in lines(run / "metrics.jsonl") if x["kind"] == "validation"][-1]
    assert validation.keys() >= {"loss", "acceptance_length", "on_policy_share"}
    best = Path(result["checkpoint"])
    assert best.is_symlink()
    assert {p.name for p in best.glob("*.safetensors")} == {"model.safetensors"}


def test_a_finished_run_is_not_trained_again(folder: Path, result: dict[str, Any]) -> None:
    before = (folder / "first" / "metrics.jsonl").read_bytes()
    again = train.run(configured(folder, "first"))
    assert (folder / "first" / "metrics.jsonl").read_bytes() == before
    assert again["acceptance_length"] == result["acceptance_length"]


def test_a_refused_resume_leaves_the_run_as_it_was(folder: Path, result: dict[str, Any]) -> None:
    names = ("resolved.yaml", "provenance.json", "data_report.json", "metrics.jsonl")
    before = {name: (folder / "first" / name).read_bytes() for name in names}
    with pytest.raises(CheckpointError, match=r"speculator.block_size: saved 8, now 4"):
        train.run(configured(folder, "first", "speculator.block_size=4"))
    assert {name: (folder / "first" / name).read_bytes() for name in names} == before


def test_the_same_seed_gives_the_same_run(folder: Path, result: dict[str, Any]) -> None:
    train.run(configured(folder, "twin", "evaluation.enabled=false"))
    first, twin = (folder / name / "metrics.jsonl" for name in ("first", "twin"))
    assert first.read_bytes() == twin.read_bytes()


def test_evaluate_takes_verifier_and_prompts_from_the_checkpoint(
    folder: Path, result: dict[str, Any]
) -> None:
    found = evaluate.run(
        configured(folder, "eval", f"checkpoint={result['checkpoint']}", command="evaluate")
    )
    assert found["acceptance_length"] == result["acceptance_length"]
    assert found["lossless_prompts"] == 2
    assert (folder / "eval" / "evaluation.json").exists()


def test_a_checkpoint_cannot_switch_on_code_and_the_command_line_wins(
    folder: Path, result: dict[str, Any]
) -> None:
    checkpoint = Path(result["checkpoint"])
    trained_with = load_run_config(checkpoint / "run.yaml")
    trained_with.verifier.trust_remote_code = True
    trained_with.verifier.template = "plain"
    serving = read_serving_config(checkpoint)

    asked = configured(folder, "eval", f"checkpoint={checkpoint}", command="evaluate")
    found = evaluate.with_verifier(asked, trained_with, serving).verifier
    assert (found.trust_remote_code, found.template) == (False, "plain")
    assert found.name_or_path == serving["speculators_config"]["verifier"]["name_or_path"]

    asked.verifier.template, asked.verifier.dtype = "mine.jinja", "float32"
    asked.verifier.trust_remote_code = True
    found = evaluate.with_verifier(asked, trained_with, serving).verifier
    assert (found.trust_remote_code, found.template, found.dtype) == (True, "mine.jinja", "float32")


def test_a_checkpoint_that_names_no_verifier_is_refused_in_one_line(
    folder: Path, result: dict[str, Any]
) -> None:
    asked = configured(folder, "eval", f"checkpoint={result['checkpoint']}", command="evaluate")
    with pytest.raises(CheckpointError, match=r"names no verifier .*; give verifier=hf"):
        evaluate.with_verifier(asked, None, {"speculators_model_type": "dflash"})


def test_prompts_that_are_too_long_show_before_training(folder: Path) -> None:
    prompts = folder / "long.jsonl"
    rows = [{"prompt": "Hello"}, {"prompt": "word " * 5000}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configured(folder, "long", f"evaluation.prompts={prompts}")
    with pytest.raises(DataError, match=r"\.prompts=.*: 1 prompts are longer than .*: 2 "):
        train.run(config)
    assert not (folder / "long" / "checkpoints").exists()


def test_no_sample_is_longer_than_the_verifiers_context(folder: Path) -> None:
    config = configured(folder, "short", "training.sequence_length=256")
    verifier = Verifier(config)
    full = prepare_data(config, verifier)
    verifier.spec = dataclasses.replace(verifier.spec, max_position_embeddings=48)
    cut = prepare_data(config, verifier)
    assert int(full.train.lengths.max()) > 48 >= int(cut.train.lengths.max())
    assert cut.report.num_truncated > 0


def test_evaluate_reads_prompt_files(folder: Path, result: dict[str, Any]) -> None:
    prompts = folder / "prompts.jsonl"
    prompts.write_text(
        '{"question_id": 1, "category": "a", "turns": ["What is 2 plus 3?", "And plus 4?"]}\n'
        '{"prompt": "Tell me a story."}\n'
    )
    found = evaluate.run(
        configured(
            folder,
            "eval2",
            f"checkpoint={result['checkpoint']}",
            f"evaluation.prompts={prompts}",
            command="evaluate",
        )
    )
    assert found["num_prompts"] == found["lossless_prompts"] == 2
    assert set(found["categories"]) == {"a", "uncategorised"}


def test_a_warm_start_keeps_the_vocabulary_of_its_checkpoint(folder: Path) -> None:
    reduced = train.run(
        configured(folder, "reduced", "speculator.draft_vocab_size=300", "evaluation.enabled=false")
    )
    warm = configured(
        folder,
        "warm",
        f"speculator.from_pretrained={reduced['checkpoint']}",
        "speculator.block_size=4",
        "training.validate_every_steps=1",
    )
    result = train.run(warm)
    assert result["lossless_prompts"] == 2
    serving = json.loads((Path(result["checkpoint"]) / "config.json").read_text())
    assert serving["draft_vocab_size"] == 300
    assert serving["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 3


def test_a_warm_start_refuses_other_layers(folder: Path, result: dict[str, Any]) -> None:
    config = configured(
        folder,
        "other",
        f"speculator.from_pretrained={result['checkpoint']}",
        "speculator.target_layer_ids=[2,3,5]",
    )
    with pytest.raises(ConfigError, match=r"aux_hidden_state_layer_ids is \[1, 3, 5\] there"):
        train.run(config)
    assert not (folder / "other").exists()


def test_stored_states_train_the_same_drafter(folder: Path, result: dict[str, Any]) -> None:
    store = f"hidden_states.store_path={folder / 'store'}"
    quick = "evaluation.enabled=false"
    train.run(configured(folder, "filling", store, "hidden_states.on_generate=cache", quick))
    train.run(
        configured(folder, "reading", "hidden_states=offline", store, quick,
                   "hidden_states.on_missing=error")
    )  # fmt: skip
    expected = (folder / "first" / "metrics.jsonl").read_bytes()
    for name in ("filling", "reading"):
        assert (folder / name / "metrics.jsonl").read_bytes() == expected


@pytest.mark.parametrize(
    ("overrides", "error", "text"),
    [
        (["speculator.target_layer_ids=[1,3,99]"], ConfigError, "speculator.target_layer_ids"),
        (["speculator.mask_token_id=1261"], ConfigError, "speculator.mask_token_id=1261"),
        (["speculator.draft_vocab_size=99999"], ConfigError, "speculator.draft_vocab_size=99999"),
        (["data=jsonl", "data.path=/nowhere/at/all.jsonl"], DataError, "/nowhere/at/all.jsonl"),
        (["evaluation.prompts=/nowhere.jsonl"], DataError, "evaluation.prompts=/nowhere.jsonl"),
        (["speculator.from_pretrained=/nowhere"], CheckpointError, "/nowhere/config.json"),
    ],
)
def test_what_cannot_run_leaves_no_run_directory(
    folder: Path, overrides: list[str], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        train.run(configured(folder, "refused", *overrides))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value).strip() or isinstance(caught.value, ConfigError)
    assert not (folder / "refused").exists()


def test_malformed_rows_are_named_with_file_and_line(folder: Path) -> None:
    bad = folder / "bad.jsonl"
    bad.write_text('{"prompt": "a", "response": "b"}\n{"prompt": \n{"messages": []}\n')
    with pytest.raises(DataError) as caught:
        prepare.run(configured(folder, "bad", "data=jsonl", f"data.path={bad}", command="prepare"))
    assert f"{bad}:2" in str(caught.value)

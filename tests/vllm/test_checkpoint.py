"""`vllm serve CHECKPOINT`: tokens, acceptance, speed, and the doctor's word on what is served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from speculators.config.composition import compose
from speculators.doctor import command
from speculators.errors import CheckpointError, LaunchError
from speculators.launch import evaluate, train
from speculators.verifier import tiny
from vllm.conftest import assert_same_drafts, serving

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
    with serving(vllm, folder / "vllm.log", checkpoint) as url:
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


def test_side_by_side_with_a_server_that_does_not_draft(
    vllm: str, server: str, checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(vllm, folder / "plain.log", tiny.folder()) as plain:
        both = [f"evaluation.baseline_endpoint={plain}", "evaluation.concurrency=[1,4]"]
        found = evaluated(folder, checkpoint, server, *both)
    assert (found["lossless_prompts"], found["mismatches"]) == (NUM_PROMPTS, [])
    levels = found["served"]["levels"]
    assert [level["concurrency"] for level in levels] == [1, 4]
    for level in levels:
        drafting, alone = level["speculative"], level["plain"]
        assert drafting["num_tokens"] == alone["num_tokens"]
        for speed in (drafting, alone):
            assert 0 < speed["inter_token_ms"]["p50"] < speed["first_token_ms"]["p95"] + 1e3
        assert level["speedup"] > 0
    assert levels[0]["speculative"]["num_drafts"] == levels[1]["speculative"]["num_drafts"]
    assert "Speed of the server" in capsys.readouterr().out


def examined(folder: Path, checkpoint: Path, url: str) -> dict[str, Any]:
    places = [f"cache_dir={folder / 'cache'}", f"output_dir={folder / 'doctor'}"]
    asked = [f"checkpoint={checkpoint}", f"doctor.endpoint={url}", *places]
    return command.run(compose("doctor", asked))


def test_the_doctor_agrees_with_what_is_served(
    server: str, checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = examined(folder, checkpoint, server)
    engine = found["findings"][-1]
    assert (found["passed"], engine["stage"], engine["verdict"]) == (True, "engine", "passed")
    assert "counters of 4 of 4 requests equal" in engine["measured"]
    print(capsys.readouterr().out)


WRONGLY: dict[str, tuple[dict[str, Any], str, str]] = {
    "layers one higher": (
        {"aux_hidden_state_layer_ids": [2, 4, 6]},
        "reads layers 2, 4, 6, not 1, 3, 5",
        "wrong layer ids",
    ),
    "causal": (
        {"sliding_window_non_causal": False},
        "makes every slot causal",
        "wrong causality",
    ),
}


@pytest.mark.parametrize("case", WRONGLY)
def test_the_doctor_names_what_is_served_wrongly(
    case: str, vllm: str, checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    """The same weights under another `config.json`, which the server reads and nobody else."""
    changes, words, cause = WRONGLY[case]
    wrong = tmp_path / checkpoint.name
    shutil.copytree(checkpoint.resolve(), wrong)
    config = json.loads((wrong / "config.json").read_text())
    assert changes.keys() <= config.keys()
    (wrong / "config.json").write_text(json.dumps(config | changes))
    with serving(vllm, tmp_path / "vllm.log", wrong) as url:
        with pytest.raises(CheckpointError, match=f"{words}.*{cause}") as caught:
            examined(folder, checkpoint, url)
        print(caught.value)
        # Of the copy the file alone says it.
        with pytest.raises(CheckpointError, match=f"training and engine differ.*{cause}") as caught:
            examined(folder, wrong, url)
        print(caught.value)


def test_a_server_of_another_model_is_refused(
    server: str, checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = evaluate.ServedCheckpoint
    monkeypatch.setattr(
        evaluate, "ServedCheckpoint", lambda names, *rest: find(frozenset({"other"}), *rest)
    )
    with pytest.raises(LaunchError, match="not other: another model"):
        evaluated(folder, checkpoint, server)

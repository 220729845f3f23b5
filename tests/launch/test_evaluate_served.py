"""`speculators evaluate evaluation.endpoint=URL`: a server's drafts beside this process's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from speculators.config.composition import compose
from speculators.conversion.layout import read_model
from speculators.evaluation.decode import decode
from speculators.launch import evaluate, train
from speculators.launch.verifier_stage import Verifier
from speculators.testing.fake_vllm import FakeVLLM
from speculators.testing.toy_verifier import ToyVerifier

QUESTIONS = ("Who bakes the bread?", "Tell me a story.", "What is 3 plus 4?")
NUM_PROMPTS = len(QUESTIONS)
_Answer = tuple[Sequence[int], list[int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    """A drafter that has learnt next to nothing: what it drafts is all the same here."""
    words = [
        "verifier=tiny",
        "training.max_steps=2",
        "training.sequence_length=128",
        "data.max_samples=16",
        "data.regenerate.enabled=false",
        "evaluation.enabled=false",
        f"cache_dir={folder / 'cache'}",
        f"output_dir={folder / 'run'}",
    ]
    train.run(compose("train", words))
    return folder / "run" / "checkpoints" / "checkpoint_best"


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Callable[..., _Answer]:
    """What a server of the checkpoint does with a prompt."""
    verifier = Verifier(compose("train", ["verifier=tiny"]))
    drafter = read_model(checkpoint, spec=verifier.spec, tables=verifier.tables())

    def answer(prompt: Sequence[int], longest: int, stops: Sequence[int]) -> _Answer:
        done = decode(
            *(verifier.model(), list(prompt)),
            drafter=drafter,
            layer_ids=drafter.config.target_layer_ids or (),
            max_new_tokens=longest,
            stop_ids=stops,
        )
        return done.tokens, done.accepted

    return answer


@pytest.fixture
def serve(tmp_path: Path, checkpoint: Path) -> Iterator[Callable[..., FakeVLLM]]:
    started: list[FakeVLLM] = []

    def start(drafting: Callable[..., _Answer]) -> FakeVLLM:
        options: dict[str, Any] = {"num_draft_tokens": 7, "model": str(checkpoint)}
        server = FakeVLLM(tmp_path, (), ToyVerifier(), drafting=drafting, **options).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


def evaluated(folder: Path, checkpoint: Path, server: FakeVLLM) -> dict[str, Any]:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS))
    overrides = [
        f"checkpoint={checkpoint}",
        f"evaluation.endpoint={server.url}",
        f"evaluation.prompts={prompts}",
        "evaluation.max_new_tokens=24",
        f"cache_dir={folder / 'cache'}",
        f"output_dir={folder / 'evaluation'}",
    ]
    return evaluate.run(compose("evaluate", overrides))


def test_the_same_drafts_are_said_to_be_the_same(
    serve: Callable[..., FakeVLLM],
    engine: Callable[..., _Answer],
    checkpoint: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = evaluated(folder, checkpoint, serve(engine))
    assert found["lossless_prompts"] == NUM_PROMPTS
    own = found["in_process"]
    assert own["equal_prompts"] == NUM_PROMPTS
    assert own["num_drafts"] == found["num_drafts"]
    assert own["acceptance_length"] == found["acceptance_length"]
    text = " ".join(capsys.readouterr().out.split())
    assert f"+0.00% apart; the same drafts stood on {NUM_PROMPTS} of {NUM_PROMPTS} prompts" in text
    assert "note:" not in text


def test_a_server_that_drafts_otherwise_is_noticed(
    serve: Callable[..., FakeVLLM],
    engine: Callable[..., _Answer],
    checkpoint: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The answers are right all the same, for drafts are verified."""

    def better(prompt: Sequence[int], longest: int, stops: Sequence[int]) -> _Answer:
        tokens = engine(prompt, longest, stops)[0]
        full, rest = divmod(len(tokens) - 1, 8)
        return tokens, [7] * full + [rest - 1] * (rest > 0)

    found = evaluated(folder, checkpoint, serve(better))
    assert found["lossless_prompts"] == NUM_PROMPTS
    assert found["acceptance_length"] > 4 > found["in_process"]["acceptance_length"]
    assert found["in_process"]["equal_prompts"] < NUM_PROMPTS
    text = " ".join(capsys.readouterr().out.split())
    assert "this is more than rounding: that server computes the drafter in another way" in text

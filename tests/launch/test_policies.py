"""Every mode with every policy: who is asked how often, what is kept, what is left out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.online_runs import PROBES, online
from speculators.config.composition import compose
from speculators.config.schema import Config
from speculators.data.types import Sample
from speculators.errors import ConfigError, HiddenStateError
from speculators.hidden_states.types import HiddenStates
from speculators.launch import extract
from speculators.launch.data_stage import prepare_data
from speculators.launch.states_stage import open_source
from speculators.launch.verifier_stage import Verifier
from speculators.testing.fake_vllm import FakeVLLM

LAYERS = (1, 3, 5)
HALF = 5


@dataclass(frozen=True)
class Case:
    """What is configured and what must come of it.

    Attributes:
        mode: `hidden_states`.
        missing: `on_missing`.
        generate: `on_generate`.
        stored: samples in the store before; None: no store.
        asked: samples asked of the server in each of two epochs.
        kept: samples in the store afterwards.
        left_out: samples left out in each epoch.
    """

    mode: str
    missing: str
    generate: str
    stored: int | None
    asked: tuple[int, int]
    kept: int
    left_out: int = 0


ALL, REST = -1, -2
CASES = [
    # online: every epoch generates, or the first one does and later ones read
    Case("online", "generate", "delete", None, (ALL, ALL), 0),
    Case("online", "generate", "cache", 0, (ALL, 0), ALL),
    # mixed: partly extracted, the rest generated while training
    Case("online", "generate", "cache", HALF, (REST, 0), ALL),
    Case("online", "generate", "delete", HALF, (REST, REST), HALF),
    Case("offline", "generate", "cache", HALF, (REST, 0), ALL),
    Case("offline", "generate", "delete", HALF, (REST, REST), HALF),
    # offline: nobody is asked
    Case("offline", "error", "delete", ALL, (0, 0), ALL),
    Case("offline", "skip", "delete", HALF, (0, 0), HALF, REST),
    Case("offline", "warn", "delete", HALF, (0, 0), HALF, REST),
    Case("online", "skip", "delete", HALF, (0, 0), HALF, REST),
    Case("online", "warn", "cache", HALF, (0, 0), HALF, REST),
    Case("online", "error", "delete", ALL, (0, 0), ALL),
    # in this process
    Case("embedded", "generate", "delete", None, (0, 0), 0),
    Case("embedded", "generate", "cache", HALF, (0, 0), ALL),
    Case("embedded", "skip", "delete", HALF, (0, 0), HALF, REST),
]


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return Verifier(compose("train", ["verifier=tiny"]))


def configured(command: str, shared: Path, server: FakeVLLM, *more: str) -> Config:
    words = [
        "verifier=tiny",
        "speculator.target_layer_ids=[1,3,5]",
        "data.max_samples=12",
        "data.regenerate.enabled=false",
        "training.sequence_length=256",
        f"cache_dir={shared / 'cache'}",
        f"output_dir={shared / 'run'}",
        f"hidden_states.fetch.transfer_path={shared / 'transfer'}",
        *more,
    ]
    return compose(command, [*words, *online(server)[1:]])


def epoch(source: Any, samples: list[Sample]) -> list[HiddenStates | None]:
    return [states for group in source.stream([s] for s in samples) for states in group]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c.mode}-{c.missing}-{c.generate}-{c.stored}"
)
def test_each_policy_does_what_it_says(
    case: Case,
    server: FakeVLLM,
    verifier: Verifier,
    shared: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "store"
    policy = [f"hidden_states={case.mode}", f"hidden_states.on_missing={case.missing}"]
    policy.append(f"hidden_states.on_generate={case.generate}")
    if case.stored is not None:
        policy.append(f"hidden_states.store_path={folder}")
    config = configured("train", shared, server, *policy)
    data = prepare_data(config, verifier)
    samples = [side[i] for side in (data.train, data.validation) for i in range(len(side))]
    number = {ALL: len(samples), REST: len(samples) - HALF}
    if case.stored:
        fill = ["hidden_states=online", f"hidden_states.store_path={folder}"]
        fill += [f"extract.max_samples={HALF}"] if case.stored == HALF else []
        extract.run(configured("extract", shared, server, *fill))
    server.calls.clear()
    source = open_source(config, verifier, LAYERS)
    try:
        source.start([sample.sample_id for sample in samples])
        greeted = len(server.calls)
        with caplog.at_level(logging.WARNING):
            passes = [epoch(source, samples)]
            after_one = len(server.calls)
            passes.append(epoch(source, samples))
    finally:
        source.close()
    assert greeted == (PROBES if case.asked[0] else 0)
    asked = (after_one - greeted, len(server.calls) - after_one)
    assert asked == tuple(number.get(n, n) for n in case.asked)
    assert len(list(folder.glob("??/*.safetensors"))) == number.get(case.kept, case.kept)
    own = [verifier.model().capture([s.input_ids], LAYERS)[0] for s in samples]
    for states in passes:
        assert sum(s is None for s in states) == number.get(case.left_out, case.left_out)
        assert all(
            s is None or (torch.equal(s.aux, o.aux) and torch.equal(s.last, o.last))
            for s, o in zip(states, own, strict=True)
        )
    said = [record for record in caplog.records if "left out" in record.message]
    assert len(said) == (number[REST] if case.missing == "warn" else 0)


@pytest.mark.parametrize("mode", ["offline", "online", "embedded"])
def test_error_names_the_sample_and_the_store(
    mode: str, server: FakeVLLM, verifier: Verifier, shared: Path, tmp_path: Path
) -> None:
    store = f"hidden_states.store_path={tmp_path}"
    half = ["hidden_states=online", store, f"extract.max_samples={HALF}"]
    extract.run(configured("extract", shared, server, *half))
    stored = {path.stem for path in tmp_path.glob("??/*.safetensors")}
    policy = [f"hidden_states={mode}", "hidden_states.on_missing=error", store]
    config = configured("train", shared, server, *policy)
    samples = prepare_data(config, verifier).train
    wanted = [samples[i] for i in range(len(samples)) if samples[i].sample_id not in stored]
    source = open_source(config, verifier, LAYERS)
    try:
        with pytest.raises(HiddenStateError) as caught:
            epoch(source, wanted)
    finally:
        source.close()
    assert f"on_missing=error: sample {wanted[0].sample_id} has no states in" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (["hidden_states=online", "hidden_states.on_generate=cache"], "store_path=DIR"),
        (
            ["hidden_states=offline", "hidden_states.store_path=null"],
            "offline states need a store",
        ),
        (["hidden_states=online", "hidden_states.endpoints=[]"], "online states need a server"),
    ],
)
def test_what_a_policy_lacks_is_said_before_anything_runs(policy: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        compose("train", ["verifier=tiny", *policy])

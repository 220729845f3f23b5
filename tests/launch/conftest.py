"""A fake server in front of the tiny verifier, and the run that needs none to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.online_runs import run
from speculators.config.composition import compose
from speculators.launch.verifier_stage import Verifier
from speculators.testing.fake_vllm import FakeVLLM
from speculators.testing.served_model import ServedModel


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("online_training")


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return ServedModel(Verifier(compose("train", ["verifier=tiny"])).model())


@pytest.fixture
def server(shared: Path, model: ServedModel) -> Iterator[FakeVLLM]:
    with FakeVLLM(
        shared / "transfer", (1, 3, 5, 7), model, answers=model.answer, max_model_len=257
    ) as fake:
        yield fake


@pytest.fixture(scope="module")
def undisturbed(shared: Path) -> list[dict[str, Any]]:
    return run(shared, "embedded", "hidden_states=embedded")

"""A toy verifier behind one or more fake servers, and sources that ask them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from hidden_states.online.toy import LAYER_IDS, Row, store_opener
from speculators.config.schema.hidden_states import (
    FetchConfig,
    HiddenStatesConfig,
    HiddenStatesMode,
)
from speculators.hidden_states.online.handshake import Expected
from speculators.hidden_states.online.source import OnlineSource
from speculators.testing.fake_vllm import FakeVLLM
from speculators.testing.toy_verifier import ToyVerifier


@pytest.fixture(scope="session")
def toy() -> ToyVerifier:
    return ToyVerifier()


@pytest.fixture
def truth(toy: ToyVerifier) -> Callable[[Sequence[Row]], list[Tensor]]:
    def compute(samples: Sequence[Row]) -> list[Tensor]:
        return [toy.states(row.input_ids.tolist(), LAYER_IDS) for row in samples]

    return compute


@pytest.fixture
def serve(tmp_path: Path, toy: ToyVerifier) -> Iterator[Callable[..., FakeVLLM]]:
    started: list[FakeVLLM] = []

    def start(**options: Any) -> FakeVLLM:
        options = {"folder": tmp_path / "transfer", "layer_ids": (4, 3, 1), "states": toy} | options
        server = FakeVLLM(**options).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def settings(tmp_path: Path) -> HiddenStatesConfig:
    """Pauses of milliseconds; deadlines that a loaded machine keeps."""
    fetch = FetchConfig(
        requests_per_endpoint=8,
        prefetch_samples=16,
        transfer_path=str(tmp_path / "transfer"),
        request_timeout_seconds=30.0,
        file_timeout_seconds=20.0,
        backoff_seconds=0.005,
        startup_timeout_seconds=10.0,
        outage_timeout_seconds=20.0,
        teacher_check_every=4,
        min_teacher_agreement=0.0,  # the rows are drawn, not written
    )
    return HiddenStatesConfig(name="online", mode=HiddenStatesMode.online, fetch=fetch)


@pytest.fixture
def expect(toy: ToyVerifier) -> Callable[[tuple[int, ...]], Expected]:
    def expected(layer_ids: tuple[int, ...]) -> Expected:
        def reference(prompt: Tensor) -> dict[int, Tensor]:
            ids = range(toy.spec.num_layers + 1)
            return dict(zip(ids, toy.states(prompt.tolist(), ids).unbind(1), strict=True))

        return Expected(toy.spec, layer_ids, 64, toy.embed_tokens, toy.head, reference)

    return expected


@pytest.fixture
def open_source(
    settings: HiddenStatesConfig, expect: Callable[[tuple[int, ...]], Expected], tmp_path: Path
) -> Iterator[Callable[..., OnlineSource]]:
    opened: list[OnlineSource] = []

    def create(
        *servers: FakeVLLM, fetch: dict[str, Any] | None = None, **options: Any
    ) -> OnlineSource:
        names = {"open_store", "record", "must_keep"}
        arguments = {name: options.pop(name) for name in names & options.keys()}
        wanted = options.pop("layer_ids", LAYER_IDS)
        configured = replace(
            settings,
            endpoints=[server.url for server in servers],
            fetch=replace(settings.fetch, **(fetch or {})),
            **options,
        )
        if configured.store_path is not None:
            opener = store_opener(
                Path(configured.store_path), configured.store_dtype, configured.max_bytes
            )
            arguments.setdefault("open_store", opener)
        arguments.setdefault("record", tmp_path / "left_out.jsonl")
        source = OnlineSource(configured, wanted, 32, expect, **arguments)
        opened.append(source)
        return source

    yield create
    for source in opened:
        source.close()

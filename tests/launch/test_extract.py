"""Filling the store ahead of training, from servers and in this process."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from speculators.config.composition import compose
from speculators.config.schema import Config
from speculators.console import open_console
from speculators.data.loader import RowLoader
from speculators.data.types import sample_id_of
from speculators.errors import ConfigError, HiddenStateOutageError
from speculators.hidden_states.identity import ANY_DTYPE
from speculators.hidden_states.offline import OfflineSource
from speculators.launch import extract
from speculators.launch.data_stage import prepare_data
from speculators.launch.states_stage import open_source
from speculators.launch.verifier_stage import Verifier
from speculators.testing.fake_vllm import FakeVLLM
from speculators.testing.served_model import ServedModel
from speculators.verifier.identity import store_identity

LAYERS = (2, 5)


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return Verifier(compose("extract", ["verifier=tiny"]))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("extract")


@pytest.fixture(scope="module")
def server(shared: Path, verifier: Verifier) -> Iterator[FakeVLLM]:
    model = ServedModel(verifier.model())
    with FakeVLLM(
        shared / "transfer", (*LAYERS, 7), model, answers=model.answer, max_model_len=513
    ) as fake:
        yield fake


def configured(shared: Path, store: Path, *overrides: str, command: str = "extract") -> Config:
    common = [
        "verifier=tiny",
        "data.max_samples=12",
        "training.sequence_length=512",
        "speculator.target_layer_ids=[2,5]",
        f"cache_dir={shared / 'cache'}",
        f"output_dir={shared / 'run'}",
        f"hidden_states.store_path={store}",
        f"hidden_states.fetch.transfer_path={shared / 'transfer'}",
    ]
    return compose(command, [*common, *overrides])


def online(server: FakeVLLM) -> list[str]:
    return ["hidden_states=online", f"hidden_states.endpoints=[{server.url}]"]


def stored(store: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {p.stem: load_file(p)["hidden_states"] for p in store.glob("??/*.safetensors")}


def test_servers_and_this_process_fill_the_same_store(
    server: FakeVLLM, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "online", tmp_path / "embedded"
    result = extract.run(configured(shared, one, *online(server)))
    assert result["samples"] == len(stored(one)) > 0
    assert result["left_out"] == 0
    text = capsys.readouterr().out
    assert f"{result['samples']} of " in text
    assert "hidden_states=offline" in text
    extract.run(configured(shared, other, "hidden_states=embedded"))
    mine, theirs = stored(one), stored(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_an_interrupted_extraction_goes_on(server: FakeVLLM, shared: Path, tmp_path: Path) -> None:
    first = configured(shared, tmp_path, *online(server), "extract.max_samples=4")
    assert extract.run(first)["samples"] == 4
    rest = extract.run(configured(shared, tmp_path, *online(server)))
    assert rest["samples"] == len(stored(tmp_path)) - 4
    calls = len(server.calls)
    assert extract.run(configured(shared, tmp_path, *online(server)))["samples"] == 0
    assert len(server.calls) == calls


def test_processes_share_the_work(server: FakeVLLM, shared: Path, tmp_path: Path) -> None:
    counts = []
    for rank in range(3):
        share = (f"extract.rank={rank}", "extract.world_size=3")
        counts.append(extract.run(configured(shared, tmp_path, *online(server), *share))["samples"])
    assert sum(counts) == len(stored(tmp_path))
    assert max(counts) < sum(counts)


def test_training_reads_what_was_extracted(
    server: FakeVLLM, shared: Path, tmp_path: Path, verifier: Verifier
) -> None:
    extract.run(configured(shared, tmp_path, *online(server)))
    config = configured(shared, tmp_path, "hidden_states=offline", command="train")
    samples = prepare_data(config, verifier).train
    source = open_source(config, verifier, LAYERS)
    assert isinstance(source, OfflineSource)
    for index, states in enumerate(source.stream([samples[i]] for i in range(len(samples)))):
        own = verifier.model().capture([samples[index].input_ids], LAYERS)[0]
        assert states[0] is not None
        assert torch.equal(states[0].aux, own.aux)
        assert torch.equal(states[0].last, own.last)


def test_the_store_says_what_it_holds(server: FakeVLLM, shared: Path, tmp_path: Path) -> None:
    config = configured(shared, tmp_path, *online(server), "extract.max_samples=1")
    extract.run(config)
    verifier = Verifier(config)
    wanted = store_identity(verifier.spec, LAYERS, dtype=ANY_DTYPE, engine="")
    from speculators.hidden_states.store import HiddenStateStore

    identity = HiddenStateStore.open(tmp_path, wanted, create=False).identity
    assert (identity.dtype, identity.engine) == ("float32", "vllm 0.32.0")


def test_a_share_comes_in_the_order_of_the_first_epoch(
    server: FakeVLLM, shared: Path, tmp_path: Path, verifier: Verifier
) -> None:
    server.calls.clear()
    config = configured(shared, tmp_path, *online(server))
    extract.run(config)
    data = prepare_data(config, verifier)
    source = open_source(config, verifier, LAYERS)
    loader = RowLoader(
        data.train, source, sequence_length=512, num_aux_layers=2, hidden_size=128, seed=config.seed
    )
    needed = [name for row in loader.iterate(0) for name in row.sample_ids]
    asked = [sample_id_of(call.token_ids) for call in server.calls]
    assert [name for name in asked if name in set(needed)] == needed


def test_extraction_waits_behind_the_limit_and_goes_on(
    server: FakeVLLM, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = extract.run(configured(shared, tmp_path / "all", *online(server)))
    limit = everything["num_bytes"] // 2
    small = [
        "verifier.dtype=float32",
        *online(server),
        f"hidden_states.max_bytes={limit}",
        "hidden_states.fetch.outage_timeout_seconds=0.2",
    ]
    with pytest.raises(HiddenStateOutageError, match=r"max_bytes=.*repeat this command"):
        extract.run(configured(shared, tmp_path / "small", *small))
    assert "there is room for: extraction will wait" in capsys.readouterr().out
    kept = len(stored(tmp_path / "small"))
    assert 0 < kept < everything["samples"]
    rest = extract.run(configured(shared, tmp_path / "small", *online(server)))
    assert rest["samples"] == everything["samples"] - kept


def test_that_there_is_no_room_is_said_in_colour(
    server: FakeVLLM, shared: Path, tmp_path: Path, verifier: Verifier
) -> None:
    small = [
        "hidden_states.max_bytes=1",
        "extract.max_samples=1",
        "hidden_states.fetch.outage_timeout_seconds=0.2",
    ]
    config = extract.filling(configured(shared, tmp_path, *online(server), *small))
    screen = io.StringIO()
    console = open_console(file=screen, force_terminal=True, color_system="standard")
    with pytest.raises(HiddenStateOutageError):
        extract.fill_store(config, verifier, prepare_data(config, verifier), console)
    assert "\x1b[33mnote:\x1b[0m more than the 1 byte there is room for" in screen.getvalue()


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["hidden_states.store_path=null"], "extracting needs a store|needs a folder"),
        (["hidden_states=offline", "hidden_states.on_missing=error"], "extracting computes states"),
        (["extract.rank=2", "extract.world_size=2"], "must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_extracted(
    overrides: list[str], text: str, shared: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        extract.run(configured(shared, tmp_path, *overrides))

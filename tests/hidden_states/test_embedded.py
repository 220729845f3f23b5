from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from hidden_states.tables import TableModel, make_identity, make_sample, states_of
from speculators.config.schema.hidden_states import OnGenerate, OnMissing
from speculators.data.types import Sample
from speculators.errors import ConfigError, HiddenStateError
from speculators.hidden_states.embedded import EmbeddedSource
from speculators.hidden_states.offline import OfflineSource
from speculators.hidden_states.store import HiddenStateStore
from speculators.hidden_states.types import HiddenStates, HiddenStateSource

LAYERS = (1, 3)


def open_store(path: Path, layer_ids: Sequence[int] = LAYERS) -> HiddenStateStore:
    return HiddenStateStore.open(path, make_identity(layer_ids), create=True)


def same(got: HiddenStates | None, sample: Sample, layer_ids: Sequence[int] = LAYERS) -> bool:
    expected = states_of(sample.input_ids, layer_ids)
    return (
        got is not None
        and torch.equal(got.aux, expected.aux)
        and torch.equal(got.last, expected.last)
    )


def test_answers_in_order(samples: list[Sample]) -> None:
    model = TableModel()
    source = EmbeddedSource(model, LAYERS, batch_tokens=64)
    assert isinstance(source, HiddenStateSource)
    groups = [[samples[0], samples[2]], [], [samples[1]]]
    answers = list(source.stream(groups))
    for group, states in zip(groups, answers, strict=True):
        assert len(group) == len(states)
        assert all(same(s, sample) for s, sample in zip(states, group, strict=True))
    # Groups never share a pass: what a group gets must not depend on where a run was resumed.
    assert model.passes == [[4, 7], [2]]
    assert source.counts.generated == 3


def test_works_on_demand(samples: list[Sample]) -> None:
    model = TableModel()
    stream = EmbeddedSource(model, LAYERS).stream([sample] for sample in samples)
    next(stream)
    assert len(model.passes) == 1


def test_cache_fills_the_store_and_reads_it_later(tmp_path: Path, samples: list[Sample]) -> None:
    store, model = open_store(tmp_path), TableModel()
    source = EmbeddedSource(model, LAYERS, store=store, on_generate=OnGenerate.cache)
    for _ in range(2):
        answers = next(source.stream([samples]))
        assert all(same(s, sample) for s, sample in zip(answers, samples, strict=True))
    assert len(model.passes) == 1
    assert (source.counts.generated, source.counts.stored) == (3, 3)
    assert set(store.sample_ids()) == {sample.sample_id for sample in samples}


def test_a_partly_filled_store_is_completed(tmp_path: Path, samples: list[Sample]) -> None:
    store, model = open_store(tmp_path), TableModel()
    store.put(samples[1], states_of(samples[1].input_ids, LAYERS))
    source = EmbeddedSource(model, LAYERS, store=store, on_generate=OnGenerate.cache)
    answers = next(source.stream([samples]))
    assert all(same(s, sample) for s, sample in zip(answers, samples, strict=True))
    assert model.passes == [[4, 7]]


def test_delete_leaves_the_store_alone(tmp_path: Path, samples: list[Sample]) -> None:
    store = open_store(tmp_path)
    source = EmbeddedSource(TableModel(), LAYERS, store=store, on_generate=OnGenerate.delete)
    assert same(next(source.stream([samples]))[0], samples[0])
    assert list(store.sample_ids()) == []


def test_a_wider_store_is_filled_with_all_its_layers(tmp_path: Path, samples: list[Sample]) -> None:
    open_store(tmp_path, (0, 1, 3, 5))
    store, model = open_store(tmp_path, (1, 3)), TableModel()
    source = EmbeddedSource(model, LAYERS, store=store, on_generate=OnGenerate.cache)
    assert same(next(source.stream([samples]))[2], samples[2])
    assert model.layer_ids == [[0, 1, 3, 5]]
    assert same(open_store(tmp_path, (0, 5)).get(samples[2]), samples[2], (0, 5))


def test_damaged_states_are_generated_again(tmp_path: Path, samples: list[Sample]) -> None:
    store = open_store(tmp_path)
    source = EmbeddedSource(TableModel(), LAYERS, store=store, on_generate=OnGenerate.cache)
    next(source.stream([samples]))
    store.path_of(samples[0].sample_id).write_bytes(b"gone")
    assert same(next(source.stream([samples]))[0], samples[0])
    assert (source.counts.generated, store.num_quarantined) == (4, 1)


def test_memory_saves_passes_and_keeps_to_its_budget(samples: list[Sample]) -> None:
    model = TableModel()
    bytes_per_token = 3 * 8 * 4
    source = EmbeddedSource(model, LAYERS, memory_bytes=6 * bytes_per_token)
    for _ in range(3):
        answers = next(source.stream([samples]))
        assert all(same(s, sample) for s, sample in zip(answers, samples, strict=True))
    # 4 and 2 tokens fit, 7 do not.
    assert model.passes == [[4, 2, 7], [7], [7]]
    assert (source.counts.generated, source.counts.remembered) == (5, 4)


@pytest.mark.parametrize("policy", [OnMissing.skip, OnMissing.warn, OnMissing.error])
@pytest.mark.parametrize("offline", [True, False])
def test_policies_without_generation(
    tmp_path: Path,
    samples: list[Sample],
    caplog: pytest.LogCaptureFixture,
    policy: OnMissing,
    offline: bool,
) -> None:
    store = open_store(tmp_path)
    store.put(samples[1], states_of(samples[1].input_ids, LAYERS))
    source = (
        OfflineSource(store, policy)
        if offline
        else EmbeddedSource(None, LAYERS, store=store, on_missing=policy)
    )
    if policy is OnMissing.error:
        with pytest.raises(HiddenStateError) as caught:
            next(source.stream([samples]))
        assert samples[0].sample_id in str(caught.value)
        assert str(tmp_path) in str(caught.value)
        return
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            answers = next(source.stream([samples]))
            assert answers[0] is answers[2] is None
            assert same(answers[1], samples[1])
    assert (source.counts.left_out, source.counts.stored) == (4, 2)
    assert len(caplog.records) == (2 if policy is OnMissing.warn else 0)
    source.close()


def test_warnings_do_not_flood(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = OfflineSource(open_store(tmp_path), OnMissing.warn)
    many = [make_sample(i, i) for i in range(2000)]
    with caplog.at_level(logging.WARNING):
        list(source.stream([many]))
    assert len(caplog.records) == 12
    assert "2000 samples have no states" in caplog.records[-1].message


def test_impossible_policies(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"on_generate=cache: needs hidden_states\.store"):
        EmbeddedSource(TableModel(), LAYERS, on_generate=OnGenerate.cache)
    with pytest.raises(ConfigError, match="on_missing=skip: without generate, states come from"):
        EmbeddedSource(TableModel(), LAYERS, on_missing=OnMissing.skip)
    with pytest.raises(ConfigError, match="on_missing=generate: needs the verifier"):
        EmbeddedSource(None, LAYERS)
    with pytest.raises(ConfigError, match="an offline source cannot generate"):
        OfflineSource(open_store(tmp_path), OnMissing.generate)


def test_a_broken_verifier_stops_the_run(samples: list[Sample]) -> None:
    class Broken(TableModel):
        def capture(
            self,
            input_ids: Sequence[torch.Tensor],
            layer_ids: Sequence[int],
            *,
            max_tokens: int | None = None,
        ) -> list[HiddenStates]:
            good = super().capture(input_ids, layer_ids, max_tokens=max_tokens)
            return [HiddenStates(states.aux, states.last / 0) for states in good]

    with pytest.raises(HiddenStateError, match=r"not finite: .* layer last; try verifier"):
        next(EmbeddedSource(Broken(), LAYERS).stream([samples]))


def test_a_closed_source_does_not_generate(samples: list[Sample]) -> None:
    source = EmbeddedSource(TableModel(), LAYERS)
    source.close()
    with pytest.raises(RuntimeError, match="this source is closed"):
        next(source.stream([samples]))

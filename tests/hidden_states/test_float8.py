"""Eight-bit states: small loss, no layer lost beside a louder one, the same bits every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hidden_states.tables import TableModel, make_identity, make_sample, states_of
from speculators.config.schema.hidden_states import OnGenerate
from speculators.hidden_states.embedded import EmbeddedSource
from speculators.hidden_states.float8 import FLOAT8, quantise, restore
from speculators.hidden_states.store import HiddenStateStore

SAMPLE = make_sample(4, 5, 6, 7)


def loud_states() -> torch.Tensor:
    """Layers whose norms differ by a factor of a million, and one huge value per token."""
    states = torch.randn(64, 3, 256, generator=torch.Generator().manual_seed(0))
    states *= torch.tensor([0.01, 1.0, 1e4])[:, None]
    states[:, 2, 7] = 3e6
    return states


def test_every_layer_keeps_its_states() -> None:
    states = loud_states()
    restored = restore(*quantise(states)).float()
    error = (restored - states).norm(dim=-1) / states.norm(dim=-1)
    assert error.max() < 0.04
    assert error[:, :2].mean() == pytest.approx(0.026, abs=0.003)


def test_zero_rows_stay_zero() -> None:
    states = loud_states()
    states[3, 0] = 0
    restored = restore(*quantise(states))
    assert not restored[3, 0].any()
    assert restored.isfinite().all()


def test_a_store_gives_the_first_time_what_it_gives_later(tmp_path: Path) -> None:
    identity = make_identity(dtype=FLOAT8)
    store = HiddenStateStore.open(tmp_path, identity, create=True)
    states = states_of(SAMPLE.input_ids, (1, 3))
    first = store.put(SAMPLE, states)
    later = HiddenStateStore.open(tmp_path, make_identity(dtype="any"), create=False).get(SAMPLE)
    assert later is not None
    assert torch.equal(first.aux, later.aux)
    assert torch.equal(first.last, later.last)
    assert first.last.dtype == torch.bfloat16
    assert (first.last.float() - states.last).norm() / states.last.norm() < 0.04
    tensors = load_file(store.path_of(SAMPLE.sample_id))
    assert tensors["hidden_states"].dtype == torch.float8_e4m3fn
    assert list(tensors["hidden_states_scale"].shape) == [4, 3, 1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_states_scale": torch.ones(4, 2, 1)}, "scales are torch.float32 [4, 2, 1]"),
        ({"hidden_states_scale": torch.full((4, 3, 1), torch.nan)}, "not finite: 12 of 12"),
        ({"hidden_states_scale": torch.zeros(4, 3, 1)}, "all zero: 12 of 12"),
    ],
)
def test_damaged_scales_go_to_quarantine(
    change: dict[str, torch.Tensor], reason: str, tmp_path: Path
) -> None:
    store = HiddenStateStore.open(tmp_path, make_identity(dtype=FLOAT8), create=True)
    store.put(SAMPLE, states_of(SAMPLE.input_ids, (1, 3)))
    from safetensors import safe_open

    path = store.path_of(SAMPLE.sample_id)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    save_file({**load_file(path), **change}, path, metadata=header)
    assert store.get(SAMPLE) is None
    assert reason in (tmp_path / "quarantine" / "reasons.jsonl").read_text()


def test_a_full_store_changes_no_bit(tmp_path: Path) -> None:
    identity, samples = make_identity(dtype=FLOAT8), [make_sample(i, i + 1) for i in range(1, 9)]
    small = HiddenStateStore.open(tmp_path / "small", identity, create=True, max_bytes=1)
    large = HiddenStateStore.open(tmp_path / "large", identity, create=True)
    found = []
    for store in (small, large):
        source = EmbeddedSource(TableModel(), (1, 3), store=store, on_generate=OnGenerate.cache)
        found.append([states[0] for states in source.stream([s] for s in samples)])
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one.aux, other.aux)
        assert torch.equal(one.last, other.last)
    assert list(small.sample_ids()) == []

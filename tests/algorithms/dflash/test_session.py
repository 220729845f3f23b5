from __future__ import annotations

from typing import Any

import pytest
import torch

from algorithms.dflash.rows import make_batch, make_config, make_drafter, make_spec
from algorithms.dflash.test_model import REDUCED, RULES
from speculators.algorithms.dflash.model import DFlashDrafter
from speculators.algorithms.dflash.session import DFlashSession
from speculators.data.types import PackedBatch
from speculators.modules import key_value_cache


def proposals(drafter: DFlashDrafter, batch: PackedBatch, steps: list[int]) -> dict[int, list[int]]:
    """Draft along the row's only document, given `steps` new tokens at a time."""
    session = drafter.new_session()
    found, at = {}, 0
    for step in steps:
        end = at + step
        proposal = session.propose(batch.aux[at:end], batch.input_ids[at + 1 : end + 1])
        found[end] = proposal.tokens.tolist()
        assert proposal.probabilities is None
        at = end
    return found


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_session_equals_training_forward(
    rules: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever arrives at a time, a draft depends on the confirmed tokens alone."""
    monkeypatch.setattr(key_value_cache, "FIRST_CAPACITY", 2)
    drafter, _ = make_drafter(make_config(draft_vocab_size=30, **rules), vocabulary=REDUCED)
    batch = make_batch((40,), padding=0)
    for steps in ([7, 1, 2, 5, 1, 1, 3, 8], [1] * 9, [30]):
        for start, tokens in proposals(drafter, batch, steps).items():
            wanted = drafter.draft(batch, torch.tensor([start]))[0]
            assert tokens == wanted.tolist()


def test_caches_hold_the_context_and_nothing_of_blocks() -> None:
    drafter, _ = make_drafter()
    batch = make_batch((40,), padding=0)
    session = drafter.new_session()
    assert isinstance(session, DFlashSession)
    session.propose(batch.aux[:9], batch.input_ids[1:10])
    first = session._caches[1].view().keys.clone()
    session.propose(batch.aux[9:12], batch.input_ids[10:13])
    assert session.length == 12
    assert all(len(cache.view().keys) == 12 for cache in session._caches)
    assert torch.equal(session._caches[1].view().keys[:9], first)


def test_sampling_draws_from_what_it_reports() -> None:
    drafter, _ = make_drafter(make_config(draft_vocab_size=30), vocabulary=REDUCED, scale=0.1)
    batch = make_batch((40,), padding=0)
    g = torch.Generator().manual_seed(0)
    first = drafter.new_session().propose(
        batch.aux[:6], batch.input_ids[1:7], temperature=0.8, generator=g
    )
    q = first.probabilities
    assert q is not None
    torch.testing.assert_close(q.sum(-1), torch.ones(4))
    outside = torch.ones(96, dtype=torch.bool)
    outside[REDUCED.ids] = False
    assert not q[:, outside].any()
    counts = torch.zeros(4, 96)
    for _ in range(1500):
        counts[torch.arange(4), drafter.draw(q[:, REDUCED.ids].log(), 1.0, g).tokens] += 1
    assert (counts / 1500 - q).abs().max() < 0.06


def test_low_temperature_is_greedy() -> None:
    drafter, _ = make_drafter()
    batch = make_batch((20,), padding=0, spec=make_spec())
    greedy = drafter.new_session().propose(batch.aux[:6], batch.input_ids[1:7])
    cold = drafter.new_session().propose(
        batch.aux[:6], batch.input_ids[1:7], temperature=1e-4, generator=torch.Generator()
    )
    assert torch.equal(greedy.tokens, cold.tokens)

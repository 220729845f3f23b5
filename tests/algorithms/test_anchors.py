from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speculators.algorithms.anchors import (
    anchor_candidates,
    even_anchors,
    fill_anchors,
    fixed_anchors,
    random_anchors,
    walk_anchors,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_candidates_are_response_tokens_with_a_response_token_behind() -> None:
    #            p  p  r  r  r | r  r | p  r | padding
    documents = [0, 0, 0, 0, 0, 1, 1, 2, 2, -1, -1]
    mask = [0, 0, 1, 1, 1, 1, 1, 0, 1, 0, 0]
    found = anchor_candidates(torch.tensor(mask).bool(), torch.tensor(documents))
    assert found.nonzero().flatten().tolist() == [2, 3, 5]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(1, 40), st.integers(0, 5))
def test_random_anchors_are_distinct_ascending_candidates(
    count: int, budget: int, seed: int
) -> None:
    candidates = torch.zeros(60, dtype=torch.bool)
    candidates[torch.randperm(60, generator=generator(seed))[:count]] = True
    found = random_anchors(candidates, budget, generator(seed))
    assert len(found) == min(count, budget)
    assert bool(candidates[found].all())
    assert bool((found.diff() > 0).all())
    assert torch.equal(found, random_anchors(candidates, budget, generator(seed)))


def test_fixed_anchors_cut_each_response_from_its_first_token() -> None:
    #            p  r  r  r  r  r  p  r  r  r | r  r  r  r | padding
    documents = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, -1]
    mask = [0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0]
    ids = torch.tensor(documents)
    candidates = anchor_candidates(torch.tensor(mask).bool(), ids)
    assert candidates.nonzero().flatten().tolist() == [1, 2, 3, 4, 7, 8, 10, 11, 12]
    for seed in range(3):
        found = fixed_anchors(candidates, ids, 100, 2, generator(seed))
        assert found.tolist() == [1, 3, 7, 10, 12]
    assert fixed_anchors(candidates, ids, 100, 4, generator()).tolist() == [1, 7, 10]
    fewer = [tuple(fixed_anchors(candidates, ids, 2, 2, generator(s)).tolist()) for s in range(20)]
    assert len(set(fewer)) > 3
    assert all(len(some) == 2 and set(some) <= {1, 3, 7, 10, 12} for some in fewer)
    nothing = torch.zeros_like(candidates)
    assert len(fixed_anchors(nothing, ids, 4, 2, generator())) == 0


def test_random_anchors_reach_every_candidate_about_equally() -> None:
    candidates = torch.ones(20, dtype=torch.bool)
    g = generator()
    visits = torch.zeros(20)
    for _ in range(2000):
        visits[random_anchors(candidates, 5, g)] += 1
    assert visits.min() > 420
    assert visits.max() < 580


def test_even_anchors_do_not_depend_on_packing() -> None:
    """A document gets the same anchors wherever it stands and whatever stands beside it."""
    length, own = 200, 60
    alone = torch.full((length,), -1)
    alone[:own] = 0
    packed = torch.full((length,), -1)
    packed[:70], packed[70 : 70 + own] = 0, 1
    first = even_anchors(alone == 0, alone, 20)
    second = even_anchors(packed >= 0, packed, 20)
    assert first.tolist() == [p - 70 for p in second.tolist() if p >= 70]
    assert first.tolist() == [5, 15, 25, 35, 45, 55]  # its share, 20 * 60 / 200, in the middle


def test_every_document_has_an_even_anchor() -> None:
    documents = torch.arange(50) // 2
    assert len(even_anchors(documents >= 0, documents, 4)) == 25
    assert len(even_anchors(documents < 0, documents, 4)) == 0


def test_walk_visits_one_past_the_accepted_run() -> None:
    documents = torch.zeros(40, dtype=torch.int64)
    positions = [*range(3, 20), *range(30, 38)]
    runs = dict.fromkeys(positions, 2) | {30: 0}
    found = walk_anchors(positions, runs, documents, 100, 1, generator()).tolist()
    # from 18 the run ends at 20, outside the response: the walk goes on with the next one
    assert found == [3, 6, 9, 12, 15, 18, 30, 31, 34, 37]


def test_walk_starts_at_random_in_every_document_and_keeps_to_the_budget() -> None:
    documents = torch.arange(400) // 100
    positions = list(range(400))
    runs = dict.fromkeys(positions, 0)
    starts = set()
    for seed in range(30):
        found = walk_anchors(positions, runs, documents, 1000, 4, generator(seed)).tolist()
        starts |= {min(p for p in found if p >= 100 * d) - 100 * d for d in range(4)}
        assert len(walk_anchors(positions, runs, documents, 7, 4, generator(seed))) == 7
    assert starts == {0, 1, 2, 3}


def test_filling() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    for size, unit in ((8, 4), (5, 32), (16, 2), (32, 1), (7, 32)):
        assert len(fill_anchors(nothing, 64, size, on_accelerator=False)) == unit
        filled = fill_anchors(torch.tensor([4, 9]), 64, size, on_accelerator=False)
        assert len(filled) * size % 32 == 0
        assert filled[:2].tolist() == [4, 9]
    shapes = {len(fill_anchors(torch.arange(n), 100, 8, on_accelerator=True)) for n in range(101)}
    assert len(shapes) == 8
    assert max(shapes) == 104

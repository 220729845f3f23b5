from __future__ import annotations

import torch

from speculators.algorithms.slots import HostRow, SlotPlan, plan_slots
from speculators.attention.layout import BlockLayout


def plan(
    anchors: list[int], *, filling: int = 0, vocabulary: list[int] | None = None, skip: bool = True
) -> SlotPlan:
    #              p   p   r   r   r   r | p   r   r
    ids = torch.tensor([10, 11, 12, 13, 14, 15, 20, 21, 22])
    documents = torch.tensor([0] * 6 + [1] * 3)
    row = HostRow(
        ids,
        torch.tensor([0, 0, 1, 1, 1, 1, 0, 1, 1]).bool(),
        documents,
        torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2]),
    )
    layout = BlockLayout(
        torch.tensor(anchors + [0] * filling), len(anchors), documents, row.position_ids, 4
    )
    draft_ids = None
    if vocabulary is not None:
        draft_ids = torch.full((30,), -1)
        draft_ids[torch.tensor(vocabulary)] = torch.arange(len(vocabulary))
    return plan_slots(row, layout, draft_ids, skip_unreachable=skip)


def test_slot_k_predicts_the_token_at_its_own_position() -> None:
    found = plan([2])
    assert found.supervised.tolist() == [[False, True, True, True]]
    assert found.flat.tolist() == [1, 2, 3]
    assert found.labels.tolist() == [13, 14, 15]
    assert found.bases.tolist() == [2, 3, 4]  # the verifier's opinion sits one before
    assert found.index.tolist() == [0, 1, 2]


def test_blocks_end_with_their_document_and_filling_is_never_trained() -> None:
    found = plan([4, 7], filling=2)
    assert found.supervised.int().tolist() == [[0, 1, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
    assert found.labels.tolist() == [15, 22]


def test_slots_are_sorted_by_base_and_bases_are_shared() -> None:
    found = plan([2, 3, 4])
    assert found.bases.tolist() == [2, 3, 4]
    assert found.index.tolist() == [0, 1, 1, 2, 2, 2]
    assert found.labels.tolist() == [13, 14, 14, 15, 15, 15]
    assert sorted(found.flat.tolist()) == [1, 2, 3, 5, 6, 9]


def test_coverage_counts_tokens_once() -> None:
    found = plan([2, 3])
    assert (found.num_targets, found.num_supervised) == (3, 6)


def test_tokens_outside_the_draft_vocabulary() -> None:
    skipped = plan([2], vocabulary=[13, 15])
    assert skipped.flat.tolist() == [1, 3]
    assert skipped.labels.tolist() == [0, 1]
    assert int(skipped.supervised.sum()) == 3  # still counted by metrics, as a miss
    kept = plan([2], vocabulary=[13, 15], skip=False)
    assert kept.labels.tolist() == [0, -1, 1]


def test_no_blocks_that_count() -> None:
    found = plan([], filling=3)
    assert not found.supervised.any()
    assert [len(t) for t in (found.flat, found.labels, found.bases, found.index)] == [0] * 4

from __future__ import annotations

import time

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from attention.packings import RULES, random_layout
from speculators.attention.layout import BlockLayout, MaskRule
from speculators.attention.masks import anchored_block_mask, dense_mask
from speculators.attention.structure import block_mask

LISTS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices",
         "q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices")  # fmt: skip


def evaluated(layout: BlockLayout, rule: MaskRule) -> BlockMask:
    keys = layout.sequence_length + layout.num_slots
    mask_mod = anchored_block_mask(layout, rule)
    return create_block_mask(mask_mod, None, None, layout.num_queries, keys, device="cpu")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rule", [*RULES, MaskRule(window=300)], ids=str)
def test_equals_create_block_mask(seed: int, rule: MaskRule) -> None:
    layout = random_layout(seed, max_tokens=350, max_block=14)
    built, reference = block_mask(layout, rule), evaluated(layout, rule)
    assert built.seq_lengths == reference.seq_lengths
    for name in LISTS:
        assert torch.equal(getattr(built, name), getattr(reference, name)), name


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rule", [*RULES, MaskRule(window=300)], ids=str)
def test_its_predicate_is_the_mask(seed: int, rule: MaskRule) -> None:
    layout = random_layout(seed, max_tokens=350, max_block=14)
    queries, keys = (
        torch.arange(layout.num_queries)[:, None],
        torch.arange(layout.sequence_length + layout.num_slots),
    )
    zero = torch.zeros((), dtype=torch.int64)
    seen = block_mask(layout, rule).mask_mod(zero, zero, queries, keys[None])
    assert torch.equal(seen, dense_mask(layout, rule))


def test_blocks_larger_than_a_tile() -> None:
    anchors = torch.tensor([3, 150])
    layout = BlockLayout(anchors, 2, torch.zeros(256, dtype=torch.int64), torch.arange(256), 300)
    for rule in (MaskRule(), MaskRule(window=140), MaskRule(causal=True)):
        built, reference = block_mask(layout, rule), evaluated(layout, rule)
        assert all(torch.equal(getattr(built, n), getattr(reference, n)) for n in LISTS)
        assert int(built.full_kv_num_blocks.sum()) > 0  # pyright: ignore


def test_large_row_is_cheap() -> None:
    length, blocks = 8192, 3072
    index = torch.arange(length)
    anchors = torch.randperm(length - 2)[:blocks].sort().values
    layout = BlockLayout(anchors, blocks, index // 1000, index % 1000, 8)
    begin = time.perf_counter()
    mask = block_mask(layout, MaskRule())
    assert time.perf_counter() - begin < 0.5  # measured 0.007; the grid has 805 million entries
    assert sum(getattr(mask, name).nbytes for name in LISTS) < 2**20

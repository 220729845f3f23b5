"""Where blocks start: candidates, and the strategies that choose among them.

At serving an anchor is a token the verifier has just emitted, so prompt tokens are none and the
first token of a response is one. All functions work on host tensors and small integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from speculators.modules.gemm import ROW_MULTIPLE

_BUCKETS = 8


def anchor_candidates(
    loss_mask: Bool[Tensor, "sequence"], document_ids: Int[Tensor, "sequence"]
) -> Bool[Tensor, "sequence"]:
    """Mark supervised tokens that a supervised token of the same document follows."""
    follows = torch.zeros_like(loss_mask)
    follows[:-1] = loss_mask[1:] & (document_ids[1:] == document_ids[:-1])
    return loss_mask & follows & (document_ids >= 0)


def anchors_with_predecessor(
    loss_mask: Bool[Tensor, "sequence"], document_ids: Int[Tensor, "sequence"]
) -> Bool[Tensor, "sequence"]:
    """Mark anchor candidates that are not the first of their document.

    For drafters that read the newest token beside the verifier's state of the one before it.
    """
    found = anchor_candidates(loss_mask, document_ids)
    found[1:] &= document_ids[1:] == document_ids[:-1]
    found[:1] = False
    return found


def random_anchors(
    candidates: Bool[Tensor, "sequence"], max_anchors: int, generator: torch.Generator
) -> Int[Tensor, "anchor"]:
    """Draw candidates without replacement, every subset equally likely; ascending."""
    positions = candidates.nonzero().flatten()
    order = torch.randperm(len(positions), generator=generator)[:max_anchors]
    return positions[order].sort().values


def even_anchors(
    candidates: Bool[Tensor, "sequence"],
    document_ids: Int[Tensor, "sequence"],
    max_anchors: int,
) -> Int[Tensor, "anchor"]:
    """Spread anchors evenly over each document, the same ones every time; ascending.

    A document's share of `max_anchors` is its share of the row, at least one, whatever else the
    row holds: what validation measures does not depend on packing.
    """
    chosen = []
    for document in document_ids[candidates].unique().tolist():
        inside = document_ids == document
        positions = (candidates & inside).nonzero().flatten()
        share = max(1, max_anchors * int(inside.sum()) // len(document_ids))
        count = min(len(positions), share)
        steps = (2 * torch.arange(count) + 1) * len(positions) // (2 * count)
        chosen.append(positions[steps])
    return torch.cat(chosen).sort().values if chosen else torch.zeros(0, dtype=torch.int64)


def fixed_anchors(
    candidates: Bool[Tensor, "sequence"],
    document_ids: Int[Tensor, "sequence"],
    max_anchors: int,
    block_size: int,
    generator: torch.Generator,
) -> Int[Tensor, "anchor"]:
    """Cut every response into blocks from its first token on, the same in every epoch; ascending.

    What random anchors are compared with in the paper (specification, section 15): a token is
    always drafted from the same distance.

    Args:
        candidates: tokens that can be anchors.
        document_ids: document of each token.
        max_anchors: blocks beyond this number are left out at random.
        block_size: tokens from one anchor to the next.
        generator: source of randomness.
    """
    positions = candidates.nonzero().flatten()
    documents = document_ids[positions]
    begins = torch.ones_like(positions, dtype=torch.bool)
    begins[1:] = (positions.diff() > 1) | (documents.diff() != 0)
    first = torch.where(begins, positions, 0).cummax(0).values
    blocks = positions[(positions - first) % block_size == 0]
    order = torch.randperm(len(blocks), generator=generator)[:max_anchors]
    return blocks[order].sort().values


def walk_anchors(
    positions: Sequence[int],
    runs: Mapping[int, int],
    document_ids: Int[Tensor, "sequence"],
    max_anchors: int,
    block_size: int,
    generator: torch.Generator,
) -> Int[Tensor, "anchor"]:
    """Visit candidates as decoding would: the next anchor is one past the accepted run; ascending.

    Args:
        positions: candidates, ascending.
        runs: drafted tokens that are right after each candidate.
        document_ids: document of each token.
        max_anchors: visited positions beyond this number are left out at random.
        block_size: a document's walk starts at one of its first `block_size` candidates at random,
            so that other positions are visited in the next epoch.
        generator: source of randomness.
    """
    documents = document_ids.tolist()
    visited: list[int] = []
    document, due, skip = -1, 0, 0
    for position in positions:
        if documents[position] != document:
            document, due = documents[position], position
            skip = int(torch.randint(block_size, (), generator=generator))
        if skip:
            skip, due = skip - 1, position + 1
        elif position >= due:
            visited.append(position)
            due = position + runs[position] + 1
    kept = torch.tensor(visited, dtype=torch.int64)
    order = torch.randperm(len(kept), generator=generator)[:max_anchors]
    return kept[order].sort().values


def fill_anchors(
    anchors: Int[Tensor, "anchor"], max_anchors: int, block_size: int, *, on_accelerator: bool
) -> Int[Tensor, "filled"]:
    """Fill up with blocks that count for nothing to a number of blocks that recurs.

    On an accelerator there are at most eight numbers, so that freed memory fits again; on a CPU the
    slots become a multiple of what fast products want. There is always at least one block, so that
    a row without candidates takes the same path, with zero weight.
    """
    if on_accelerator:
        unit = max(1, -(-max_anchors // _BUCKETS))
    else:
        unit = ROW_MULTIPLE // math.gcd(ROW_MULTIPLE, block_size)
    missing = -len(anchors) % unit if len(anchors) else unit
    return torch.cat([anchors, anchors.new_zeros(missing)])

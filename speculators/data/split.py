"""Training or validation: decided by conversation, never by row (data specification, section 6)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from speculators.errors import DataError


def split_point(seed: int, conversation_id: str) -> float:
    """Return where a conversation stands in [0, 1): below the fraction, it validates.

    The first 8 bytes of sha256(seed || conversation_id), big endian, over 2^64. It depends on
    nothing else, so the split survives reordering and growth of the data.
    """
    digest = hashlib.sha256(f"{seed}{conversation_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_validation(
    conversation_ids: Sequence[str],
    sample_ids: Sequence[str],
    *,
    fraction: float,
    seed: int,
) -> Bool[np.ndarray, "sample"]:
    """Return which samples validate.

    Conversations that share a sample stand on one side: that of the one with the smallest
    `split_point`. Each side gets at least one conversation.

    Args:
        conversation_ids: per sample.
        sample_ids: per sample.
        fraction: share of the conversations that validate.
        seed: of the run.

    Raises:
        DataError: there is nothing to split, or all conversations share samples.
    """
    groups = _join(conversation_ids, sample_ids)
    points: dict[str, float] = {}
    for conversation, group in groups.items():
        point = split_point(seed, conversation)
        points[group] = min(point, points.get(group, 1.0))
    if len(points) < 2:
        raise DataError(
            f"training.validation_fraction={fraction}: {len(groups)} distinct conversation(s) "
            "cannot be split: give at least 2, or data.validation_path=FILE"
        )
    held_out = {group for group, point in points.items() if point < fraction}
    ordered = sorted(points, key=lambda group: (points[group], group))
    if not held_out:
        held_out = {ordered[0]}
    elif len(held_out) == len(points):
        held_out.remove(ordered[-1])
    return np.array([groups[conversation] in held_out for conversation in conversation_ids])


def _join(conversation_ids: Sequence[str], sample_ids: Sequence[str]) -> dict[str, str]:
    """Return the representative of each conversation; those sharing a sample have the same."""
    parent = {conversation: conversation for conversation in conversation_ids}

    def root(conversation: str) -> str:
        while parent[conversation] != conversation:
            parent[conversation] = parent[parent[conversation]]
            conversation = parent[conversation]
        return conversation

    first: dict[str, str] = {}
    for conversation, sample in zip(conversation_ids, sample_ids, strict=True):
        a, b = root(first.setdefault(sample, conversation)), root(conversation)
        if a != b:
            parent[max(a, b)] = min(a, b)
    return {conversation: root(conversation) for conversation in parent}


def group_prefixes(rows: Sequence[bytes]) -> list[int]:
    """Group token sequences of which one opens another, for rows that name no conversation.

    Args:
        rows: tokens of each row as bytes of one width, most significant first.

    Returns:
        Per row the index of its group's shortest member.
    """
    group = list(range(len(rows)))
    opener = -1
    for index in sorted(range(len(rows)), key=lambda i: rows[i]):
        if opener >= 0 and rows[index].startswith(rows[opener]):
            group[index] = group[opener]
        else:
            opener = index
    return group

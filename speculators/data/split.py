"""Training or validation: decided by conversation, never by row (data specification, section 6)."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from speculators.errors import DataError

_MOST_OF_THE_REST = 0.5
"""Largest share of the conversations outside large groups that validate."""


@dataclass(frozen=True)
class Split:
    """Which samples validate, and what had to stay together.

    Attributes:
        validates: per sample.
        num_groups: conversations that begin alike are one group; a group stands on one side.
        largest_group: samples of the largest group.
    """

    validates: Bool[np.ndarray, "sample"]
    num_groups: int
    largest_group: int


def split_point(seed: int, conversation_id: str) -> float:
    """Return where a conversation stands in [0, 1): below the fraction, it validates.

    The first 8 bytes of sha256(seed || conversation_id), big endian, over 2^64. It depends on
    nothing else, so the split survives reordering and growth of the data.
    """
    digest = hashlib.sha256(f"{seed}{conversation_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_validation(
    conversation_ids: Sequence[str],
    *links: Sequence[str | bytes],
    fraction: float,
    seed: int,
    repeats: Sequence[tuple[str, str | bytes]] = (),
) -> Split:
    """Divide samples into training and validation.

    Conversations that share a link (an equal sample, an equal first answer to an equal prompt) are
    one group and stand on one side: that of the `split_point` of their smallest id. Which id is the
    smallest has nothing to do with its point, so a group validates with a probability of `fraction`
    whatever its size. Only several conversations that together hold more than `fraction` of the
    samples always train, since they would fill the validation alone, and the others validate the
    more often. Either way the expected share of the samples is `fraction`. Each side gets at least
    one group.

    Args:
        conversation_ids: per sample.
        links: keys per sample; conversations with an equal key are joined.
        fraction: share of the conversations that validate.
        seed: of the run.
        repeats: conversation and key of samples that are not among them, because they repeat one;
            the conversations are joined all the same.

    Raises:
        DataError: there is nothing to split, or all conversations begin alike.
    """
    pairs = itertools.chain(*(zip(conversation_ids, keys, strict=True) for keys in links), repeats)
    groups = _join(pairs)
    points = {group: split_point(seed, group) for group in groups.values()}
    if len(points) < 2:
        alike = ", which all begin alike," if len(groups) > 1 else ""
        raise DataError(
            f"training.validation_fraction={fraction}: {len(groups)} distinct conversation(s)"
            f"{alike} cannot be split: give at least 2, or data.validation_path=FILE"
        )
    sizes = Counter(groups[conversation] for conversation in conversation_ids)
    members = Counter(groups.values())
    most = fraction * len(conversation_ids)
    divided = {group for group in points if members[group] == 1 or sizes[group] <= most}
    rest = sum(sizes[group] for group in divided)
    below = fraction
    if rest < len(conversation_ids):
        below = min(_MOST_OF_THE_REST, most / max(1, rest))
    held_out = {group for group in divided if points[group] < below}
    if not held_out:
        half = len(conversation_ids) / 2
        small = (group for group in points if sizes[group] <= half)
        held_out = {min(small, key=lambda group: (points[group], group))}
    elif len(held_out) == len(points):
        held_out.remove(max(points, key=lambda group: (sizes[group], group)))
    return Split(
        np.array([groups[conversation] in held_out for conversation in conversation_ids]),
        num_groups=len(points),
        largest_group=max(sizes.values()),
    )


def _order(conversation_id: str) -> tuple[int, str]:
    """Sort key: numbered ids in the order of their numbers, so that growth moves few groups."""
    return len(conversation_id), conversation_id


def _join(pairs: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """Return the smallest id of each conversation's group; equal keys join conversations."""
    parent: dict[str, str] = {}

    def root(conversation: str) -> str:
        while parent[conversation] != conversation:
            parent[conversation] = parent[parent[conversation]]
            conversation = parent[conversation]
        return conversation

    first: dict[str | bytes, str] = {}
    for conversation, key in pairs:
        parent.setdefault(conversation, conversation)
        a, b = root(first.setdefault(key, conversation)), root(conversation)
        if a != b:
            small, large = sorted((a, b), key=_order)
            parent[large] = small
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

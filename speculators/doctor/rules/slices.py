"""Acceptance by kind of prompt and by length of context, as decoding measured it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.doctor.case import Case
from speculators.doctor.causes import LONG_CONTEXTS, UNEVEN_SLICES
from speculators.doctor.diagnosis import Diagnosis, Rule, confirmed, suspected

_FEWEST_PROMPTS, _FEWEST_DRAFTS = 4, 50
_SHARE = 0.5


def look_at_kinds(case: Case) -> Diagnosis | None:
    """Find a kind of prompt far below all prompts together."""
    overall = case.decoded.get("acceptance_length")
    parts: Mapping[str, Any] = {
        **(case.decoded.get("suites") or {}),
        **(case.decoded.get("categories") or {}),
    }
    large = {k: v for k, v in parts.items() if v.get("num_prompts", 0) >= _FEWEST_PROMPTS}
    if overall is None or len(large) < 2:
        return None
    worst = min(large, key=lambda name: large[name]["acceptance_length"])
    length = large[worst]["acceptance_length"]
    if length - 1 > _SHARE * (overall - 1):
        return None
    return suspected(
        UNEVEN_SLICES,
        f"tau {length:.2f} on {worst}, {overall:.2f} on all prompts",
        f"not made: train with more data like {worst} and compare",
    )


def look_at_lengths(case: Case) -> Diagnosis | None:
    """Find contexts beyond the rows of training that are accepted far less."""
    bins = case.decoded.get("context_lengths") or {}
    counted = {k: v for k, v in bins.items() if v.get("num_drafts", 0) >= _FEWEST_DRAFTS}
    longest = case.config.training.sequence_length
    beyond = {k: v for k, v in counted.items() if int(k.partition("-")[0]) >= longest}
    within = {k: v for k, v in counted.items() if k not in beyond}
    if not beyond or not within:
        return None
    inside = max(part["acceptance_length"] for part in within.values())
    name = min(beyond, key=lambda key: beyond[key]["acceptance_length"])
    length = beyond[name]["acceptance_length"]
    if length - 1 > _SHARE * (inside - 1):
        return None
    return confirmed(
        LONG_CONTEXTS,
        f"tau {length:.2f} behind {name} tokens, {inside:.2f} behind fewer",
        f"no training row is longer than {longest} tokens",
    )


KINDS = Rule((UNEVEN_SLICES,), look_at_kinds)
LENGTHS = Rule((LONG_CONTEXTS,), look_at_lengths)

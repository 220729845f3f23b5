"""What the numbers of a run look like: by stage of the run, by position, by length, by kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from speculators.doctor.case import Case

_LEARNT = 1.3
"""Acceptance lengths below this are those of a drafter that has hardly learnt anything."""
_LOW_FIRST = 0.3
_STEEP = 0.5


@dataclass(frozen=True)
class Signature:
    """One look at the numbers.

    Attributes:
        name: which.
        numbers: the numbers.
        reading: what such numbers usually mean; empty where they are unremarkable.
    """

    name: str
    numbers: str
    reading: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return everything, ready for JSON."""
        return dict(vars(self))


def signatures(case: Case) -> list[Signature]:
    """Return what can be read off the files of a run."""
    return [*_stages(case), *_positions(case), *_parts(case)]


def _stages(case: Case) -> Iterator[Signature]:
    """Training, validation and decoding should tell the same story."""
    lengths = {
        "training blocks": case.at_end("block_acceptance_length"),
        "validation": case.validated,
        "decoding": case.decoded.get("acceptance_length"),
    }
    known = {name: value for name, value in lengths.items() if value is not None}
    if not known:
        return
    numbers = ", ".join(f"{name} {value:.2f}" for name, value in known.items())
    reading = ""
    trained, validated, decoded = lengths.values()
    if trained is not None and validated is not None and trained - 1 > 2 * (validated - 1):
        reading = "training does better than validation: a leak, or rows known by heart"
    promised = validated if validated is not None and validated > _LEARNT else None
    if promised is not None and decoded is not None and decoded - 1 < 0.6 * (promised - 1):
        reading = "validation promises what decoding does not keep: a convention differs"
    yield Signature("tau by stage", numbers, reading)


def _positions(case: Case) -> Iterator[Signature]:
    """Share accepted at each position, of drafts accepted up to the one before."""
    source: Mapping[str, Any] = case.decoded
    if not source.get("acceptance_per_position") and case.validations:
        source = case.validations[-1]
    prefix = source.get("acceptance_per_position") or []
    if not prefix:
        return
    before = [1.0, *prefix[:-1]]
    given = [k / b if b > 0 else 0.0 for k, b in zip(prefix, before, strict=True)]
    numbers = " ".join(f"{share:.0%}" for share in given)
    reading = ""
    if given[0] < _LOW_FIRST:
        reading = "the first token is mostly wrong: states, layers, data or too little training"
    elif len(given) > 1 and given[1] < _STEEP * given[0]:
        reading = "it breaks behind the first token: mask token, causality, labels, or own tokens"
    yield Signature("accepted by position, if the one before was", numbers, reading)


def _parts(case: Case) -> Iterator[Signature]:
    """Acceptance by kind of prompt and by length."""
    for key, name in (
        ("suites", "tau by suite"),
        ("categories", "tau by category"),
        ("prompt_lengths", "tau by prompt length"),
        ("context_lengths", "tau by context length"),
    ):
        parts = case.decoded.get(key) or {}
        if len(parts) > 1:
            shown = ", ".join(f"{k} {v['acceptance_length']:.2f}" for k, v in parts.items())
            yield Signature(name, shown)

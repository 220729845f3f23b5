"""`convert`: a checkpoint in another layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from speculators.config.schema.problem import Problem, at_least


@dataclass
class ConvertConfig:
    """What is written, and what the checkpoint does not say itself."""

    to: str | None = None
    """Layout to write; null: the one vLLM serves as it is."""
    target_layer_ids: list[int] | None = None
    """Layers the drafter reads, as extraction ids, for layouts that do not store them; null: the
    algorithm's rule."""
    num_draft_tokens: int | None = None
    """Tokens of one proposal, for layouts that do not store it; null: the algorithm's default."""
    private: bool = False
    """Make a new hub repository private."""
    allow_failed_parity: bool = False
    """Upload also what the doctor found served otherwise than trained; the card says so."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        yield from at_least(self, "num_draft_tokens", 1)
        ids = self.target_layer_ids
        if ids is not None and (not ids or ids != sorted(set(ids)) or ids[0] < 0):
            yield Problem("target_layer_ids", ids, "must be ids of 0 or more, ascending")

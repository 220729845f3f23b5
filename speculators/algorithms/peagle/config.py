"""`speculator=peagle`: every choice of P-EAGLE (parallel Eagle)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from speculators.algorithms.eagle3.fused_config import FusedLayersConfig
from speculators.config.schema.problem import Problem, at_least, positive


@dataclass
class PEagleConfig(FusedLayersConfig):
    """Eagle's network, all tokens in one pass: later slots read a mask and a learned state."""

    name: str = "peagle"
    num_draft_tokens: int = 4
    """Tokens of one proposal: the confirmed row's own, and one per mask slot."""
    max_anchors: int = 512
    """Blocks trained per packed row."""
    mask_token_id: int | None = None
    """Embedding row of the mask slots; null finds an unused one and prints it."""
    slot_decay: float = 1.0
    """Weight of the k-th drafted token is decay^(k-1)."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        yield from super().problems()
        yield from at_least(self, "num_draft_tokens", 1)
        yield from at_least(self, "max_anchors", 1)
        yield from at_least(self, "mask_token_id", 0)
        yield from positive(self, "slot_decay")

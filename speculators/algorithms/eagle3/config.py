"""`speculator=eagle3`: every choice of the Eagle-3 algorithm (arXiv:2503.01840)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from speculators.algorithms.eagle3.fused_config import FusedLayersConfig
from speculators.config.schema.problem import Problem, at_least, positive


class TttTokens(Enum):
    """Which token enters a later step of a chain while training."""

    data = "data"
    own = "own"


@dataclass
class Eagle3Config(FusedLayersConfig):
    """Autoregressive drafter: one token per pass, fed with the verifier's states, then its own."""

    name: str = "eagle3"
    num_draft_tokens: int = 3
    """Tokens of one proposal."""
    ttt_steps: int = 3
    """Steps of a chain while training: the first on the verifier's states, the rest on its own."""
    ttt_decay: float = 1.0
    """Weight of step t is decay^t."""
    ttt_tokens: TttTokens = TttTokens.data
    """data: the next token of the data; own: what the drafter would draft."""
    fc_norm: bool = False
    """One norm per fused state; excludes norm_before_fc."""
    norm_output: bool = False
    """Later steps read the normed output of the one before."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges and what excludes each other."""
        yield from super().problems()
        yield from at_least(self, "num_draft_tokens", 1)
        yield from at_least(self, "ttt_steps", 1)
        yield from positive(self, "ttt_decay")
        if self.fc_norm and self.norm_before_fc:
            yield Problem("fc_norm", True, "excludes norm_before_fc: choose one of the two")

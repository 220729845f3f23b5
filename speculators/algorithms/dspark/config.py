"""`speculator=dspark`: DFlash's block with a Markov head and a confidence head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from speculators.algorithms.dflash.config import DFlashConfig
from speculators.config.schema.problem import Problem, at_least


@dataclass
class DSparkConfig(DFlashConfig):
    """One non-causal pass drafts a block; a low-rank bias lets each token see the one before."""

    name: str = "dspark"
    markov_rank: int = 256
    """Rank of the bias that the token before adds to the logits."""
    confidence_weight: float = 1.0
    """Weight of the loss of the confidence head; 0 builds none."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges, and what the serving engine makes of windows."""
        yield from super().problems()
        yield from at_least(self, "markov_rank", 1)
        yield from at_least(self, "confidence_weight", 0)
        if self.sliding_window is not None and not self.sliding_causal:
            yield Problem(
                "sliding_causal",
                False,
                "the serving engine makes sliding layers of this drafter causal: set it to true",
            )

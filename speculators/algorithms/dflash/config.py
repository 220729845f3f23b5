"""`speculator=dflash`: every choice of the DFlash algorithm (arXiv:2602.06036)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from speculators.config.schema.problem import Problem, at_least, between, positive
from speculators.config.schema.speculator import DraftLayersConfig


class PositionWeights(Enum):
    """How much each slot of a block counts (specification, section 9)."""

    exp = "exp"
    uniform = "uniform"
    dpace = "dpace"


class Normalization(Enum):
    """Divisor of the summed loss (specification, section 10)."""

    weights = "weights"
    slots = "slots"


class AnchorStrategy(Enum):
    """Where blocks start (specification, section 6)."""

    random = "random"
    fixed = "fixed"
    walk = "walk"


@dataclass
class DFlashConfig(DraftLayersConfig):
    """Block diffusion drafter: one non-causal pass drafts a block after an anchor."""

    name: str = "dflash"
    block_size: int = 8
    """Anchor plus drafted tokens of one pass."""
    max_anchors: int = 512
    """Blocks trained per packed row."""
    anchor_strategy: AnchorStrategy = AnchorStrategy.random
    """random: without replacement over all candidates; fixed: every block_size tokens of a
    response; walk: where decoding would start blocks."""
    mask_token_id: int | None = None
    """Embedding row of the slots to be filled; null finds an unused one and prints it."""
    position_weights: PositionWeights = PositionWeights.exp
    """exp: exp(-(k-1)/gamma); uniform; dpace: by what still depends on a slot
    (arXiv:2605.18810)."""
    loss_decay_gamma: float | None = None
    """gamma of exp; null: 7, 5, 4 for block sizes 16, 10, 8, linear in between."""
    dpace_alpha: float = 0.5
    """Smoothing of dpace."""
    normalization: Normalization = Normalization.weights
    """Divide by the sum of weights, or by the number of supervised slots."""
    num_sliding_layers: int | None = None
    """The first n layers slide; null: all of them when a window is given."""
    sliding_causal: bool = False
    """Slots of sliding layers see only earlier slots. Only servable when every layer slides."""

    def problems(self) -> Iterator[Problem]:
        """Check block, window and loss settings."""
        yield from super().problems()
        if self.block_size < 2:
            yield Problem(
                "block_size",
                self.block_size,
                "a block holds the anchor and at least one drafted token, so it must be 2 or more",
            )
        yield from at_least(self, "max_anchors", 1)
        yield from positive(self, "loss_decay_gamma")
        yield from between(self, "dpace_alpha", 0, 1)
        yield from at_least(self, "mask_token_id", 0)
        if self.position_weights is PositionWeights.dpace and "ce" not in self.loss.active():
            yield Problem("loss.ce", self.loss.ce, "dpace weights are made from ce: set it above 0")
        if self.sliding_window is None:
            if self.num_sliding_layers:
                yield Problem(
                    "num_sliding_layers", self.num_sliding_layers, "give sliding_window too"
                )
            if self.sliding_causal:
                yield Problem("sliding_causal", True, "only sliding layers: give sliding_window")
        elif self.num_sliding_layers is not None:
            yield from between(self, "num_sliding_layers", 0, self.num_layers)
            if self.sliding_causal and self.num_sliding_layers != self.num_layers:
                yield Problem(
                    "sliding_causal",
                    True,
                    "vLLM applies one causality to all layers: let every layer slide or none",
                )

"""`speculator=eagle3`: every choice of the Eagle-3 algorithm (arXiv:2503.01840)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from speculators.config.schema.problem import Problem, at_least, positive
from speculators.config.schema.speculator import DraftLayersConfig


class LayerType(Enum):
    """Kind of decoder layer: llama, or qwen3, which norms queries and keys."""

    llama = "llama"
    qwen3 = "qwen3"


class TttTokens(Enum):
    """Which token enters a later step of a chain while training."""

    data = "data"
    own = "own"


@dataclass
class FusedLayersConfig(DraftLayersConfig):
    """Drafters whose first layer reads [embedding; fused states]: Eagle-3 and its relatives."""

    layer_type: LayerType | None = None
    """llama or qwen3; null: qwen3 for a qwen3 verifier, else llama."""
    norm_before_residual: bool = True
    """The first layer's residual starts from the normed states."""
    norm_before_fc: bool = False
    """One norm over all fused states together."""
    train_lm_head: bool = False
    """Train the draft head; false keeps the verifier's rows."""

    def problems(self) -> Iterator[Problem]:
        """Check what the serving engine could not run."""
        yield from super().problems()
        if self.sliding_window is not None and self.layer_type is LayerType.llama:
            yield Problem(
                "sliding_window",
                self.sliding_window,
                "the serving engine honours windows only in qwen3 layers: set layer_type=qwen3",
            )


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
    activation_checkpointing: bool = False
    """Compute each step again in the backward pass: memory for time."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges and what excludes each other."""
        yield from super().problems()
        yield from at_least(self, "num_draft_tokens", 1)
        yield from at_least(self, "ttt_steps", 1)
        yield from positive(self, "ttt_decay")
        if self.fc_norm and self.norm_before_fc:
            yield Problem("fc_norm", True, "excludes norm_before_fc: choose one of the two")

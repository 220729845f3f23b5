"""Settings of drafters whose first layer reads [embedding; fused states]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from speculators.config.schema.problem import Problem
from speculators.config.schema.speculator import DraftLayersConfig


class LayerType(Enum):
    """Kind of decoder layer: llama, or qwen3, which norms queries and keys."""

    llama = "llama"
    qwen3 = "qwen3"


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

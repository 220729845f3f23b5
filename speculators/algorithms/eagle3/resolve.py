"""What null means for a given verifier."""

from __future__ import annotations

from typing import TypeVar

from speculators.algorithms.eagle3.fused_config import FusedLayersConfig, LayerType
from speculators.algorithms.eagle3.target_layers import eagle3_layer_ids
from speculators.algorithms.resolving import fill
from speculators.verifier.spec import VerifierSpec

ConfigT = TypeVar("ConfigT", bound=FusedLayersConfig)


def fill_fused(config: ConfigT, spec: VerifierSpec, **defaults: object) -> ConfigT:
    """Return `config` without nulls: layers (2, L // 2, L - 3), the verifier's layer type."""
    return fill(
        config,
        spec,
        target_layer_ids=list(eagle3_layer_ids(spec.num_layers)),
        layer_type=LayerType.qwen3 if "qwen3" in spec.model_type else LayerType.llama,
        **defaults,
    )

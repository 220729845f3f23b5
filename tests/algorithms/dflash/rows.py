"""Small DFlash drafters over the made-up verifier."""

from __future__ import annotations

from typing import Any

import torch

from algorithms.rows import STEP, make_batch, make_spec
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.dflash.model import DFlashDrafter
from speculators.config.schema import AttentionBackend
from speculators.config.schema.speculator import LossWeights
from speculators.data.vocabulary import DraftVocabulary
from speculators.verifier.head import VerifierHead

__all__ = ["STEP", "make_batch", "make_config", "make_drafter", "make_spec"]


def make_config(**changes: Any) -> DFlashConfig:
    values: dict[str, Any] = {
        "num_layers": 3,
        "target_layer_ids": [1, 4, 6],
        "block_size": 5,
        "max_anchors": 12,
        "mask_token_id": 95,
        "loss": LossWeights(ce=1.0),
    }
    return DFlashConfig(**values | changes)


def make_drafter(
    config: DFlashConfig | None = None,
    *,
    vocabulary: DraftVocabulary | None = None,
    attention: AttentionBackend = AttentionBackend.auto,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    **spec_changes: Any,
) -> tuple[DFlashDrafter, VerifierHead]:
    """Return a drafter (weights of visible size) and the teacher, in `dtype`."""
    spec = make_spec(**spec_changes)
    g = torch.Generator().manual_seed(3)
    embed = torch.randn(spec.vocab_size, spec.hidden_size, generator=g)
    head = torch.randn(spec.vocab_size, spec.hidden_size, generator=g) * scale
    norm = torch.rand(spec.hidden_size, generator=g) + 0.5
    drafter = DFlashDrafter.build(
        DFlashDrafter.resolve(config or make_config(), spec, [95]),
        spec,
        vocabulary or DraftVocabulary.full(spec.vocab_size),
        embed_tokens=embed.to(dtype),
        lm_head=head.to(dtype),
        generator=g,
        attention=attention,
    )
    with torch.no_grad():
        for parameter in drafter.parameters():
            noise = torch.randn(parameter.shape, generator=g)
            parameter.add_(noise * (0.15 if parameter.ndim == 2 else 0.1))
    return drafter.to(dtype), VerifierHead(spec, norm, head.to(dtype))

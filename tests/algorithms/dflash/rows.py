"""A small made-up verifier and packed rows for tests of the DFlash drafter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from speculators.algorithms.base import StepContext
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.dflash.model import DFlashDrafter
from speculators.config.schema import AttentionBackend
from speculators.config.schema.speculator import LossWeights
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec

STEP = StepContext(seed=1, step=0)


def make_spec(**changes: Any) -> VerifierSpec:
    spec = VerifierSpec(
        name_or_path="/verifier",
        folder="/verifier",
        revision=None,
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        num_layers=8,
        hidden_size=32,
        intermediate_size=64,
        vocab_size=96,
        num_tokens=90,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default"},
        max_position_embeddings=512,
        dtype="float32",
        tie_word_embeddings=False,
        bos_token_id=1,
        pad_token_id=0,
        eos_token_ids=(2, 3),
    )
    return replace(spec, **changes)


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


def make_batch(
    lengths: tuple[int, ...] = (20, 13, 9),
    *,
    padding: int = 6,
    prompt: int = 4,
    num_states: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    spec: VerifierSpec | None = None,
) -> PackedBatch:
    """Return documents of the given lengths whose first `prompt` tokens are not supervised."""
    spec = spec or make_spec()
    g = torch.Generator().manual_seed(seed)
    total = sum(lengths) + padding
    documents = torch.full((total,), -1)
    positions = torch.zeros(total, dtype=torch.int64)
    mask = torch.zeros(total, dtype=torch.bool)
    start = 0
    for index, length in enumerate(lengths):
        documents[start : start + length] = index
        positions[start : start + length] = torch.arange(length)
        mask[start + prompt : start + length] = True
        start += length
    real = (documents >= 0)[:, None].to(dtype)

    def states(*shape: int) -> Tensor:
        return torch.randn(total, *shape, generator=g, dtype=torch.float32).to(dtype)

    return PackedBatch(
        input_ids=torch.randint(4, 90, (total,), generator=g) * (documents >= 0),
        loss_mask=mask,
        document_ids=documents,
        position_ids=positions,
        aux=states(num_states, spec.hidden_size) * real[..., None],
        last=states(spec.hidden_size) * real,
    )

"""A small made-up verifier and packed rows for tests of drafters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from speculators.algorithms.base import StepContext
from speculators.data.types import PackedBatch
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

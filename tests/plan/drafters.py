"""Drafters over a verifier of the tiny one's sizes, and rows of a known shape."""

from __future__ import annotations

from typing import Any

import torch

from speculators.algorithms.base import Drafter
from speculators.algorithms.cost import Workload
from speculators.algorithms.registry import drafter_class
from speculators.config.discovery import variants
from speculators.config.schema import VerifierConfig
from speculators.config.schema.speculator import LossWeights
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.spec_reader import read_spec


def tiny_spec() -> VerifierSpec:
    return read_spec(VerifierConfig(name="tiny", name_or_path="tiny"))


def make_drafter(name: str, **changes: Any) -> tuple[Drafter[Any], VerifierHead]:
    spec = tiny_spec()
    values: dict[str, Any] = {"num_layers": 2, "loss": LossWeights(kl=1.0)}
    algorithm = drafter_class(name)
    asked = variants()["speculator"][name](**values | changes)
    config = algorithm.resolve(asked, spec, [spec.vocab_size - 1])
    g = torch.Generator().manual_seed(0)
    tables = [torch.randn(spec.vocab_size, spec.hidden_size, generator=g) * 0.1 for _ in range(2)]
    drafter = algorithm.build(
        config,
        spec,
        DraftVocabulary.full(spec.vocab_size),
        embed_tokens=tables[0],
        lm_head=tables[1],
        generator=g,
    )
    return drafter, VerifierHead(spec, torch.ones(spec.hidden_size), tables[1])


def make_row(drafter: Drafter[Any], length: int, document: int, prompt: int) -> PackedBatch:
    """Documents of one length, each opening with `prompt` tokens that are not supervised."""
    g, index = torch.Generator().manual_seed(1), torch.arange(length)
    hidden = drafter.spec.hidden_size
    return PackedBatch(
        input_ids=torch.randint(4, 200, (length,), generator=g),
        loss_mask=index % document >= prompt,
        document_ids=index // document,
        position_ids=index % document,
        aux=torch.randn(length, len(drafter.config.target_layer_ids), hidden, generator=g),
        last=torch.randn(length, hidden, generator=g),
    )


def workload_of(row: PackedBatch) -> Workload:
    return Workload.of(row, bfloat16=False, fused_attention=False)

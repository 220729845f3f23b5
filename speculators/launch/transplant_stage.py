"""A start from a drafter of another verifier: tokens by text, layers by depth, all reported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from speculators.algorithms.base import Drafter, StepContext
from speculators.algorithms.registry import drafter_class
from speculators.conversion.layout import read_vocabulary
from speculators.conversion.transplant import transplant_weights
from speculators.data.prepared import PreparedData
from speculators.data.template import VerifierTokenizer
from speculators.data.token_map import map_tokens
from speculators.launch.verifier_stage import Verifier
from speculators.launch.warm_start import WarmStart
from speculators.verifier.spec import VerifierSpec


@dataclass(frozen=True)
class Transplant:
    """What became of layers, tokens and weights.

    Attributes:
        checkpoint: where the weights come from.
        verifiers: the verifier there and here.
        num_layers: their decoder layers.
        target_layer_ids: layers the drafter reads, there and here.
        vocab_sizes: rows of their embeddings.
        matched_tokens: tokens there that stand for a token here.
        matched_share: of the supervised tokens of the data, those that were known there.
        draft_vocab_sizes: tokens that can be drafted, there and here.
        drafted_before: of those here, the ones that could be drafted there.
        mask_token_ids: there and here; None for an algorithm without one.
        weights: tensors taken over as they are.
        rows: rows taken over, by name, of tensors with a row per token.
    """

    checkpoint: str
    verifiers: tuple[str, str]
    num_layers: tuple[int, int]
    target_layer_ids: tuple[list[int], list[int]]
    vocab_sizes: tuple[int, int]
    matched_tokens: int
    matched_share: float
    draft_vocab_sizes: tuple[int, int]
    drafted_before: int
    mask_token_ids: tuple[int, int] | None
    weights: int
    rows: dict[str, int]

    def lines(self) -> Iterator[str]:
        """Say it to people."""
        yield f"transplant from {self.checkpoint}, a drafter of {self.verifiers[0]}"
        (there, here), (depth_there, depth_here) = self.target_layer_ids, self.num_layers
        yield f"  layers read: {there} of {depth_there} there, {here} of {depth_here} here"
        yield (
            f"  tokens: {self.matched_tokens:,} of {self.vocab_sizes[0]:,} there stand for one of "
            f"the {self.vocab_sizes[1]:,} here; {self.matched_share:.1%} of the supervised tokens"
        )
        yield (
            f"  draft vocabulary: {self.draft_vocab_sizes[1]:,} tokens, {self.drafted_before:,} of "
            f"them among the {self.draft_vocab_sizes[0]:,} there"
        )
        if self.mask_token_ids is not None:
            yield "  mask token: {} there, {} here".format(*self.mask_token_ids)
        rows = "".join(f"; {count:,} rows of {name}" for name, count in self.rows.items())
        yield f"  weights: {self.weights} tensors{rows}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def transplant(
    start: WarmStart, drafter: Drafter[Any], verifier: Verifier, data: PreparedData
) -> Transplant:
    """Overwrite a freshly built drafter's weights with the checkpoint's, matched to this verifier.

    Raises:
        CheckpointError: the checkpoint is damaged, or its weights have no place here.
        ConfigError: the other verifier has no tokenizer.
    """
    origin, spec = start.origin, verifier.spec
    assert origin is not None
    tokens = _matched_tokens(origin, verifier)
    source = _shapes(start, origin)
    rows = transplant_weights(drafter, source, start.folder, tokens)
    reached = torch.zeros(spec.vocab_size, dtype=torch.bool)
    reached[tokens[tokens >= 0]] = True
    drafted = torch.zeros_like(reached)
    there = tokens[source.vocabulary.ids]
    drafted[there[there >= 0]] = True
    counts = data.token_counts
    mask_there, mask_here = (getattr(d.config, "mask_token_id", None) for d in (source, drafter))
    return Transplant(
        checkpoint=str(start.folder),
        verifiers=(origin.name_or_path, spec.name_or_path),
        num_layers=(origin.num_layers, spec.num_layers),
        target_layer_ids=(
            list(source.config.target_layer_ids or ()),
            list(drafter.config.target_layer_ids or ()),
        ),
        vocab_sizes=(origin.vocab_size, spec.vocab_size),
        matched_tokens=int((tokens >= 0).sum()),
        matched_share=float(counts[reached].sum() / counts.sum().clamp(min=1)),
        draft_vocab_sizes=(len(source.vocabulary), len(drafter.vocabulary)),
        drafted_before=int(drafted[drafter.vocabulary.ids].sum()),
        mask_token_ids=None if mask_there is None or mask_here is None else (mask_there, mask_here),
        weights=len(drafter.trainable_parameters()) - len(drafter.token_rows()),
        rows=rows,
    )


def _matched_tokens(origin: VerifierSpec, verifier: Verifier) -> Int[Tensor, "old_vocab"]:
    spec = verifier.spec
    there = VerifierTokenizer.load(
        Path(origin.folder), template="plain", eos_token_ids=origin.eos_token_ids
    )
    parts = [
        (origin.bos_token_id, spec.bos_token_id),
        (origin.pad_token_id, spec.pad_token_id),
        *zip(origin.eos_token_ids, spec.eos_token_ids, strict=False),
    ]
    return map_tokens(there, verifier.tokenizer, origin.vocab_size, parts)


def _shapes(start: WarmStart, origin: VerifierSpec) -> Drafter[Any]:
    """Return the checkpoint's drafter without memory: names and shapes of its weights."""
    vocabulary = read_vocabulary(start.folder, origin.vocab_size)
    table = torch.empty(origin.vocab_size, origin.hidden_size, device="meta")
    with torch.device("meta"):
        return drafter_class(start.settings.name).build(
            start.settings, origin, vocabulary, embed_tokens=table, lm_head=table,
            generator=StepContext(0, step=0).generator("init"),
        )  # fmt: skip

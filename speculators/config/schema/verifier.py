"""`verifier`: the model that is sped up, and the conventions that come with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from speculators.config.schema.problem import Problem


@dataclass
class VerifierSizes:
    """What `config.json` says of sizes, for planning where it cannot be had."""

    num_layers: int = MISSING
    """Decoder layers."""
    hidden_size: int = MISSING
    """Width of the residual stream."""
    intermediate_size: int = MISSING
    """Width of the MLP."""
    vocab_size: int = MISSING
    """Rows of the embedding."""
    num_attention_heads: int = MISSING
    """Query heads."""
    num_key_value_heads: int = MISSING
    """Key and value heads."""
    head_dim: int = MISSING
    """Size of a head."""
    num_experts: int | None = None
    """Experts of a layer; null: it has one MLP."""
    experts_per_token: int | None = None
    """Experts a token goes through."""
    expert_intermediate_size: int | None = None
    """Width of an expert."""
    tie_word_embeddings: bool = False
    """The head is the embedding."""
    dtype: str = "bfloat16"
    """Number format of the stored weights."""
    model_type: str = MISSING
    """Family, for example qwen3."""


@dataclass
class VerifierConfig:
    """The model whose output must not change."""

    name: str = MISSING
    """Short name of the choice, used in run names (`tiny`, `qwen3_8b`)."""
    name_or_path: str = MISSING
    """Hub id, local folder, or `tiny` for the model that ships with this package."""
    revision: str | None = None
    """Hub revision (branch, tag or commit); null is the default branch."""
    dtype: str = "auto"
    """Precision when the verifier runs in this process: auto (as stored), float32, bfloat16."""
    trust_remote_code: bool = False
    """Run model code that comes with the repository. Only for sources you trust."""
    target_layer_ids: list[int] | None = None
    """Recommended layers to read, as extraction ids: id i is the stream entering layer i."""
    mask_token_id: int | None = None
    """An existing embedding row that no text uses; null looks for one and prints it."""
    draft_vocab_size: int | None = None
    """Recommended size of the reduced draft vocabulary; null keeps the whole vocabulary."""
    drafter_rope_theta: float | None = None
    """Recommended base of a plain rotary embedding of the drafter's own, for a verifier whose kind
    drafters do not compute; null: the verifier's embedding."""
    sizes: VerifierSizes | None = None
    """plan: sizes to count with when the model's own config.json cannot be had."""
    template: str = "auto"
    """auto: the tokenizer's chat template, or plain text where it has none; plain: turns joined
    as they are, for base models; otherwise the path of a Jinja file."""
    template_arguments: dict[str, Any] = field(default_factory=dict)
    """Passed to the chat template (for example enable_thinking: false). Part of the data set's
    identity."""

    def problems(self) -> Iterator[Problem]:
        """Check what is known without reading the model."""
        if self.dtype not in ("auto", "float32", "bfloat16"):
            yield Problem("dtype", self.dtype, "allowed: auto, float32, bfloat16")

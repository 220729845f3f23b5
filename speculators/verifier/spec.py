"""What is known of a verifier without its weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any


class NormKind(Enum):
    """How the final norm applies its weight."""

    rms = "rms"
    rms_plus_one = "rms_plus_one"


@dataclass(frozen=True)
class VerifierSpec:
    """Sizes and ids of a verifier, read from its configuration files.

    Symbols of the specifications in brackets.

    Attributes:
        name_or_path: hub id or absolute folder, as checkpoints name it.
        folder: local folder that holds config, tokenizer and weights.
        revision: hub revision, or None for a folder.
        architecture: class name, for example Qwen3ForCausalLM.
        model_type: for example qwen3, llama.
        num_layers: decoder layers [L].
        hidden_size: width [H].
        intermediate_size: MLP width [I].
        vocab_size: rows of the embedding [V], not the tokenizer's length.
        num_tokens: length of the tokenizer, at most `vocab_size`.
        num_attention_heads: query heads [nq].
        num_key_value_heads: key/value heads [nkv].
        head_dim: head size [D].
        hidden_act: activation of the MLP.
        rms_norm_eps: epsilon of every norm.
        rope_parameters: rope_theta, rope_type and what the type needs.
        max_position_embeddings: longest context.
        dtype: number format of the stored weights.
        tie_word_embeddings: whether the head is the embedding.
        bos_token_id: first token of a sequence, or None.
        pad_token_id: padding token, or None.
        eos_token_ids: every id that ends a turn (config and generation config).
        norm_kind: how the final norm applies its weight.
        logit_softcap: cap c of c * tanh(logits / c), or None.
        tokenizer_hash: sha256 of tokenizer.json.
        num_experts: experts of a layer, or None where it has one MLP.
        experts_per_token: experts a token goes through.
        expert_intermediate_size: width of an expert.
    """

    name_or_path: str
    folder: str
    revision: str | None
    architecture: str
    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_tokens: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    rms_norm_eps: float
    rope_parameters: dict[str, Any]
    max_position_embeddings: int
    dtype: str
    tie_word_embeddings: bool
    bos_token_id: int | None
    pad_token_id: int | None
    eos_token_ids: tuple[int, ...]
    norm_kind: NormKind = NormKind.rms
    logit_softcap: float | None = None
    tokenizer_hash: str = ""
    num_experts: int | None = None
    experts_per_token: int | None = None
    expert_intermediate_size: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def with_drafter(
        self,
        *,
        rope_parameters: dict[str, Any],
        rms_norm_eps: float,
        max_position_embeddings: int,
    ) -> VerifierSpec:
        """Return the verifier as a drafter sees it whose own layers have these values."""
        return replace(
            self,
            rope_parameters=rope_parameters,
            rms_norm_eps=rms_norm_eps,
            max_position_embeddings=max_position_embeddings,
        )

"""A verifier's sizes without its files: enough to count with, not to train with."""

from __future__ import annotations

from speculators.config.schema import VerifierConfig, VerifierSizes
from speculators.verifier.spec import VerifierSpec


def spec_of_sizes(config: VerifierConfig, sizes: VerifierSizes) -> VerifierSpec:
    """Return a spec with the sizes given in the configuration; ids and norms are not known."""
    return VerifierSpec(
        name_or_path=config.name_or_path,
        folder="",
        revision=config.revision,
        architecture=sizes.model_type,
        model_type=sizes.model_type,
        num_layers=sizes.num_layers,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        vocab_size=sizes.vocab_size,
        num_tokens=sizes.vocab_size,
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=sizes.num_key_value_heads,
        head_dim=sizes.head_dim,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        max_position_embeddings=2**31,
        dtype=sizes.dtype,
        tie_word_embeddings=sizes.tie_word_embeddings,
        bos_token_id=None,
        pad_token_id=None,
        eos_token_ids=(),
        num_experts=sizes.num_experts,
        experts_per_token=sizes.experts_per_token,
        expert_intermediate_size=sizes.expert_intermediate_size,
    )


def num_weights(spec: VerifierSpec, *, active: bool = False) -> int:
    """Return a verifier's weights, embedding and head included; norms and routers are left out.

    Args:
        spec: the verifier.
        active: count only the experts that one token goes through.
    """
    q, kv = (n * spec.head_dim for n in (spec.num_attention_heads, spec.num_key_value_heads))
    experts = (spec.experts_per_token if active else spec.num_experts) or 1
    width = experts * (spec.expert_intermediate_size or spec.intermediate_size)
    layer = spec.hidden_size * (2 * q + 2 * kv + 3 * width)
    tables = 1 if spec.tie_word_embeddings else 2
    return spec.num_layers * layer + tables * spec.vocab_size * spec.hidden_size

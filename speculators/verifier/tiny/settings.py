"""Sizes and training settings of the tiny verifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What the tiny verifier is and how it is trained.

    Attributes:
        num_tokens: length of the tokenizer.
        vocab_size: rows of the embedding; the rows beyond `num_tokens` stand for no text, so one
            of them can serve as a mask token.
        hidden_size: width of the stream.
        intermediate_size: width of the MLP.
        num_layers: decoder layers; deep enough that early and late layers know different things.
        num_heads: query heads.
        num_key_value_heads: key and value heads.
        head_dim: 32 is the smallest head that vLLM's CPU attention serves.
        rope_theta: base of the rotary angles.
        norm_eps: of every norm.
        max_positions: longest context in tokens.
        num_conversations: training conversations, each seen once.
        seed: of conversations, initial weights and order.
        batch_tokens: tokens of one step, padding included.
        peak_lr: AdamW learning rate after warm-up; falls to zero along a cosine.
        muon_lr: Muon learning rate of the matrices, same schedule; 0 gives them to AdamW.
        warmup_steps: linear warm-up.
        weight_decay: on matrices.
        prompt_weight: weight of the loss on tokens that the assistant does not write.
        precision: of the forward and backward pass; the weights being trained are float32.
    """

    num_tokens: int = 1264
    vocab_size: int = 1280
    hidden_size: int = 128
    intermediate_size: int = 352
    num_layers: int = 7
    num_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    max_positions: int = 2048
    num_conversations: int = 150_000
    seed: int = 0
    batch_tokens: int = 2048
    peak_lr: float = 4e-3
    muon_lr: float = 6e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    prompt_weight: float = 0.1
    precision: str = "bfloat16"

    def model_config(self, pad_token_id: int, eos_token_id: int) -> dict[str, Any]:
        """Return `config.json` (transformers 5, Qwen3)."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "dtype": "bfloat16",
            "eos_token_id": eos_token_id,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "layer_types": ["full_attention"] * self.num_layers,
            "max_position_embeddings": self.max_positions,
            "max_window_layers": self.num_layers,
            "model_type": "qwen3",
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pad_token_id": pad_token_id,
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": self.vocab_size,
        }

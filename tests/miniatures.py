"""Random verifiers of every family, a few thousand weights each, as `transformers` builds them.

Each has what makes its family special: kind of norm, soft-capping, shared head, experts, sinks,
windows, layers of different widths, a vision tower around the text model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

VOCAB_SIZE = 97
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_RECURRENT = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_PARTIAL_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2
_GEMMA3 = {"sliding_window": 5, "query_pre_attn_scalar": 8, "layer_types": _ALTERNATING}
_GEMMA4 = {
    "sliding_window": 5,
    "layer_types": _ALTERNATING,
    "final_logit_softcapping": 3.0,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "use_bidirectional_attention": "vision",
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "image_size": 28,
    "patch_size": 14,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": _LLAMA3_ROPE},
    "qwen3": {},
    "qwen3_tied": {"tie_word_embeddings": True},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "mistral": {"sliding_window": 5},
    "phi3": {"rope_parameters": _PARTIAL_ROPE, "tie_word_embeddings": True},
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 8},
    "gemma3_text": _GEMMA3,
    "gemma3": {"text_config": _GEMMA3, "vision_config": _VISION, "mm_tokens_per_image": 4},
    "gemma4_text": _GEMMA4,
    "gemma4": {"text_config": _GEMMA4, "vision_config": _VISION},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5},
    "qwen3_5_text": _RECURRENT,
}
"""What each family adds to the common sizes; a name before `_tied` is a model type."""

DECODING = [name for name in FAMILIES if name != "qwen3_5_text"]
"""Families whose cache can be cut back, so that they can verify drafts in this process."""


def build_model(family: str, **changes: object) -> PreTrainedModel:
    """Return a random model whose layers all matter (the default init is nearly an identity)."""
    torch.manual_seed(0)
    own = FAMILIES[family]
    settings = {**own, **changes}
    if "text_config" in own:
        settings["text_config"] = {**_SIZES, **own["text_config"]}
    else:
        settings = {**_SIZES, **settings}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family.removesuffix("_tied"), **settings)
    )
    # Experts of gpt-oss multiply what they are given: smaller weights keep rounding as small.
    spread = 0.1 if family == "gpt_oss" else 0.2
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, spread)
            else:
                weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def save_tokenizer(folder: Path) -> None:
    """Save a word-level tokenizer of 90 words, of which three are special."""
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(87))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(folder)


def save_miniature(folder: Path, family: str, max_shard_size: str = "1GB", **changes: Any) -> Path:
    """Save a verifier with its tokenizer, as a hub repository holds them."""
    logging.disable_progress_bar()
    build_model(family, **changes).save_pretrained(folder, max_shard_size=max_shard_size)
    save_tokenizer(folder)
    return folder

"""Small random verifiers of several families, saved as transformers saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

VOCAB_SIZE = 97
_SIZES = {
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
_FAMILIES = {
    "llama": {},
    "qwen3": {},
    "qwen3_tied": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 5},
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 5, "query_pre_attn_scalar": 8},
    "qwen3_5_text": _RECURRENT,
}


def build_model(family: str, **changes: object) -> PreTrainedModel:
    """Return a random model whose layers all matter (the default init is nearly an identity)."""
    torch.manual_seed(0)
    model_type = family.removesuffix("_tied")
    config = AutoConfig.for_model(model_type, **{**_SIZES, **_FAMILIES.get(family, {}), **changes})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2)
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


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a family once per session and returns its folder."""
    saved: dict[str, Path] = {}

    def save(family: str, max_shard_size: str = "1GB", **changes: object) -> Path:
        key = f"{family} {max_shard_size} {sorted(changes.items())}"
        if key not in saved:
            folder = tmp_path_factory.mktemp(family)
            logging.disable_progress_bar()
            build_model(family, **changes).save_pretrained(folder, max_shard_size=max_shard_size)
            save_tokenizer(folder)
            saved[key] = folder
        return saved[key]

    return save

"""The Qwen3 architecture in plain PyTorch, for training the tiny verifier quickly on one core.

Parameter names are those of `Qwen3ForCausalLM`, so that the weights are written as they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from speculators.verifier.tiny.settings import Settings


class Attention(nn.Module):
    """Grouped-query attention with a norm on every query and key head."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        hidden, dim = settings.hidden_size, settings.head_dim
        self.dim = dim
        self.repeats = settings.num_heads // settings.num_key_value_heads
        self.q_proj = nn.Linear(hidden, settings.num_heads * dim, bias=False)
        self.k_proj = nn.Linear(hidden, settings.num_key_value_heads * dim, bias=False)
        self.v_proj = nn.Linear(hidden, settings.num_key_value_heads * dim, bias=False)
        self.o_proj = nn.Linear(settings.num_heads * dim, hidden, bias=False)
        self.q_norm = nn.RMSNorm(dim, eps=settings.norm_eps)
        self.k_norm = nn.RMSNorm(dim, eps=settings.norm_eps)

    def forward(
        self,
        stream: Float[Tensor, "batch sequence hidden"],
        rotary: tuple[Float[Tensor, "sequence half"], Float[Tensor, "sequence half"]],
    ) -> Float[Tensor, "batch sequence hidden"]:
        """Attend causally."""
        batch, length, _ = stream.shape
        query, key, value = (
            projection(stream).view(batch, length, -1, self.dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(self.q_norm(query), rotary), rotate(self.k_norm(key), rotary)
        key, value = (x.repeat_interleave(self.repeats, dim=1) for x in (key, value))
        mixed = attend(query, key, value)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


def rotate(
    heads: Float[Tensor, "batch head sequence dim"],
    rotary: tuple[Float[Tensor, "sequence half"], Float[Tensor, "sequence half"]],
) -> Float[Tensor, "batch head sequence dim"]:
    """Turn each pair (i, i + dim / 2) by the angle of its position."""
    cosine, sine = rotary
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def attend(
    query: Float[Tensor, "batch head sequence dim"],
    key: Float[Tensor, "batch head sequence dim"],
    value: Float[Tensor, "batch head sequence dim"],
) -> Float[Tensor, "batch head sequence dim"]:
    """Attend causally.

    Plain products are several times faster on one core than the fused kernel, whose backward
    pass is slow for short sequences.
    """
    length = query.shape[2]
    future = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1)
    scores = query @ (key * query.shape[-1] ** -0.5).transpose(2, 3) + future
    return scores.softmax(dim=-1) @ value


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        hidden, inner = settings.hidden_size, settings.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(
        self, stream: Float[Tensor, "batch sequence hidden"]
    ) -> Float[Tensor, "batch sequence hidden"]:
        """Apply the gated layer."""
        return self.down_proj(functional.silu(self.gate_proj(stream)) * self.up_proj(stream))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(settings.hidden_size, eps=settings.norm_eps)
        self.self_attn = Attention(settings)
        self.post_attention_layernorm = nn.RMSNorm(settings.hidden_size, eps=settings.norm_eps)
        self.mlp = Mlp(settings)

    def forward(
        self,
        stream: Float[Tensor, "batch sequence hidden"],
        rotary: tuple[Float[Tensor, "sequence half"], Float[Tensor, "sequence half"]],
    ) -> Float[Tensor, "batch sequence hidden"]:
        """Add attention and MLP to the stream."""
        stream = stream + self.self_attn(self.input_layernorm(stream), rotary)
        return stream + self.mlp(self.post_attention_layernorm(stream))


class Decoder(nn.Module):
    """Embedding, layers and final norm (`model.` in the checkpoint)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(settings.vocab_size, settings.hidden_size)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.num_layers))
        self.norm = nn.RMSNorm(settings.hidden_size, eps=settings.norm_eps)


class TinyQwen3(nn.Module):
    """The whole model with its tied head.

    Args:
        settings: sizes.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.model = Decoder(settings)
        self.settings = settings
        half = settings.head_dim // 2
        exponents = torch.arange(half, dtype=torch.float64) / half
        self.frequencies = settings.rope_theta**-exponents

    def attention(self, layer: int) -> Attention:
        """Return the attention of a layer."""
        found = self.model.layers[layer].self_attn
        assert isinstance(found, Attention)
        return found

    def forward(
        self, input_ids: Int[Tensor, "batch sequence"]
    ) -> Float[Tensor, "batch sequence hidden"]:
        """Return the states after the final norm; logits are these times the embedding."""
        weight = self.model.embed_tokens.weight
        angles = torch.outer(
            torch.arange(input_ids.shape[1], dtype=torch.float64), self.frequencies
        )
        rotary = (angles.cos().to(weight.dtype), angles.sin().to(weight.dtype))
        stream = self.model.embed_tokens(input_ids)
        for layer in self.model.layers:
            stream = layer(stream, rotary)
        return self.model.norm(stream)

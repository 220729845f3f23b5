"""Initial weights that can already look things up in their context.

Small models learn late to find the earlier place where the present token stood and to say what
followed it there (an induction circuit). Until then they name the wrong person, word or number.
A million weights and minutes of one core are too few to wait for it, so the circuit is laid in:
a head of the first layer that brings each token its predecessor, and heads of later layers that
compare predecessors with the present token and copy. Training refines it like any other weight.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from speculators.verifier.tiny.model import Attention, TinyQwen3
from speculators.verifier.tiny.settings import Settings

_EMBEDDING_STD = 0.05
_CONSTANT = 3.0
_PREDECESSOR_SCALE = 1.5
_COPY_SCALE = 6.0
_SHARPNESS = 2.0
_LOOKUP_LAYERS = (2, 4)


def initialize(model: TinyQwen3, generator: torch.Generator) -> None:
    """Fill all weights in place.

    Args:
        model: of any settings with at least five layers and a head size that four divides.
        generator: of the draws.
    """
    settings = model.settings
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() != 2:
                continue
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            else:
                std = _EMBEDDING_STD if "embed" in name else parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=std, generator=generator)
        model.model.embed_tokens.weight[:, 0] = _EMBEDDING_STD * _CONSTANT
        read = _orthonormal(settings.head_dim, settings.hidden_size, generator)
        write = _orthonormal(settings.head_dim, settings.hidden_size, generator)
        _lay_predecessor_head(model.attention(0), settings, read, write)
        for layer in _LOOKUP_LAYERS:
            _lay_lookup_heads(model.attention(layer), settings, read, write, generator)


def _orthonormal(
    rows: int, columns: int, generator: torch.Generator
) -> Float[Tensor, "rows columns"]:
    """Draw orthonormal rows that do not touch dimension 0, the constant one."""
    square = torch.randn(columns - 1, rows, generator=generator)
    basis = torch.linalg.qr(square).Q.T
    return torch.cat((torch.zeros(rows, 1), basis), dim=1)


def _lay_predecessor_head(
    attention: Attention,
    settings: Settings,
    read: Float[Tensor, "dim hidden"],
    write: Float[Tensor, "dim hidden"],
) -> None:
    """Head 0 looks one token back, whatever the tokens are, and writes that token beside its own.

    Query and key are constants; the rotary angles of the two fastest pairs make their product
    largest at a distance of one.
    """
    dim, half = settings.head_dim, settings.head_dim // 2
    query, key = torch.zeros(dim), torch.zeros(dim)
    for pair in range(2):
        angle = torch.tensor(settings.rope_theta ** (-pair / half))
        query[pair] = 1.0
        key[pair], key[pair + half] = angle.cos(), angle.sin()
    attention.q_proj.weight[:dim] = 0
    attention.q_proj.weight[:dim, 0] = query
    attention.k_proj.weight[:dim] = 0
    attention.k_proj.weight[:dim, 0] = key
    attention.v_proj.weight[:dim] = read
    attention.o_proj.weight[:, :dim] = _EMBEDDING_STD * _PREDECESSOR_SCALE * write.T
    attention.q_norm.weight.fill_(_SHARPNESS)
    attention.k_norm.weight.fill_(_SHARPNESS)


def _lay_lookup_heads(
    attention: Attention,
    settings: Settings,
    read: Float[Tensor, "dim hidden"],
    write: Float[Tensor, "dim hidden"],
    generator: torch.Generator,
) -> None:
    """One query head per key head compares its token with all predecessors and copies.

    The comparison uses the slower half of the rotary pairs, which distance hardly turns.
    """
    dim, half = settings.head_dim, settings.head_dim // 2
    slow = torch.cat((torch.arange(half // 2, half), torch.arange(half + half // 2, dim)))
    repeats = settings.num_heads // settings.num_key_value_heads
    values = _orthonormal(
        settings.num_key_value_heads * dim, settings.hidden_size, generator
    ).unflatten(0, (settings.num_key_value_heads, dim))
    for index in range(settings.num_key_value_heads):
        rows = torch.arange(half) + (index % 2) * half
        query = torch.zeros(dim, settings.hidden_size)
        key = torch.zeros(dim, settings.hidden_size)
        query[slow], key[slow] = read[rows], write[rows]
        head = slice(index * repeats * dim, (index * repeats + 1) * dim)
        group = slice(index * dim, (index + 1) * dim)
        attention.q_proj.weight[head] = query
        attention.k_proj.weight[group] = key
        attention.v_proj.weight[group] = values[index]
        attention.o_proj.weight[:, head] = _EMBEDDING_STD * _COPY_SCALE * values[index].T
    attention.q_norm.weight.fill_(_SHARPNESS)
    attention.k_norm.weight.fill_(_SHARPNESS)

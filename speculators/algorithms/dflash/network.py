"""Weights and forward pass of a DFlash drafter, from verifier states to the input of the head.

Names and shapes of the weights are those of the published checkpoints (DFlash specification,
section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from speculators.attention.backend import BlockAttention
from speculators.attention.layout import MaskRule
from speculators.modules.decoder import BlockStates, DecoderLayer, KeyValue, LayerSizes
from speculators.modules.gemm import Linear, pad_rows
from speculators.modules.norm import RMSNorm
from speculators.modules.rotary import inverse_frequencies, rotation

_INIT_STD = 0.02


class DFlashNetwork(nn.Module):
    """Fuses verifier states into a context and runs blocks of slots through the draft layers.

    Args:
        sizes: widths of a draft layer.
        num_states: verifier layers fused [A].
        rules: mask of each draft layer.
        rope_parameters: the verifier's.
    """

    rope_frequencies: Tensor

    def __init__(
        self,
        sizes: LayerSizes,
        num_states: int,
        rules: Sequence[MaskRule],
        rope_parameters: dict[str, Any],
    ) -> None:
        super().__init__()
        self.rules = tuple(rules)
        self.fc = Linear(num_states * sizes.hidden_size, sizes.hidden_size)
        self.hidden_norm = RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in rules)
        self.norm = RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        frequencies = inverse_frequencies(sizes.head_dim, rope_parameters)
        self.register_buffer("rope_frequencies", frequencies, persistent=False)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw matrices from N(0, 0.02); norms are 1."""
        for parameter in self.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, _INIT_STD, generator=generator)
            else:
                parameter.fill_(1.0)

    def encode(
        self, states: Float[Tensor, "token aux_layer hidden"], positions: Int[Tensor, "token"]
    ) -> list[KeyValue]:
        """Return keys and values of the context in every layer; the fusion is computed once.

        Args:
            states: the verifier's, ascending by layer, in any number format.
            positions: of each token in its document.
        """
        fused = self.hidden_norm(self.fc(states.flatten(1).to(self.stream_type)))
        by = rotation(positions, self.rope_frequencies)
        return [layer.self_attn.context(fused, by) for layer in self._decoder_layers()]

    def run(
        self,
        anchors: Float[Tensor, "anchor hidden"],
        mask: Float[Tensor, "hidden"],
        positions: Int[Tensor, "anchor block"],
        context: Sequence[KeyValue],
        attention: dict[MaskRule, BlockAttention],
        keep: Int[Tensor, "slot"],
    ) -> Float[Tensor, "slot hidden"]:
        """Run blocks through all layers and the final norm.

        Args:
            anchors: embedding of every block's anchor token, its slot 0.
            mask: embedding of all other slots.
            positions: of every slot in its document.
            context: what `encode` returned.
            attention: prepared attention per mask rule.
            keep: slots wanted, as index into `anchor * block`; the last layer computes no others.
        """
        rows = torch.cat([anchors, mask[None]]).to(self.stream_type)
        states = BlockStates(rows, positions.shape[1])
        by = rotation(positions, self.rope_frequencies)
        wanted = pad_rows(keep)
        layers = self._decoder_layers()
        for layer, rule, memory in zip(layers[:-1], self.rules, context, strict=False):
            states = BlockStates(layer(states, memory, by, attention[rule]))
        last = layers[-1](states, context[-1], by, attention[self.rules[-1]], wanted)
        return self.norm(last)[: len(keep)]

    @property
    def stream_type(self) -> torch.dtype:
        """Number format of the residual stream: autocast's if it is on, else the weights'."""
        kind = self.fc.weight.device.type
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return self.fc.weight.dtype

    def _decoder_layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

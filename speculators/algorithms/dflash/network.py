"""Weights and forward pass of a DFlash drafter, from verifier states to drafted tokens.

Names and shapes of the weights are those of the published checkpoints (DFlash specification,
section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from speculators.algorithms.base import Proposal
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.tables import DraftTables
from speculators.attention.backend import BlockAttention
from speculators.attention.layout import MaskRule
from speculators.modules.decoder import BlockStates, DecoderLayer, KeyValue, LayerSizes
from speculators.modules.gemm import Linear, pad_rows
from speculators.modules.norm import RMSNorm
from speculators.modules.recompute import recomputed
from speculators.modules.rotary import inverse_frequencies, rotation
from speculators.verifier.spec import VerifierSpec

_INIT_STD = 0.02


class DFlashNetwork(DraftTables):
    """Fuses verifier states into a context and runs blocks of slots through the draft layers.

    Args:
        config: resolved settings.
        spec: the verifier.

    Attributes:
        config: as given.
        spec: as given.
        rules: mask of each draft layer.
    """

    config: DFlashConfig
    spec: VerifierSpec
    rope_frequencies: Tensor

    def __init__(self, config: DFlashConfig, spec: VerifierSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        sizes, num_states = LayerSizes.of(config, spec), len(config.target_layer_ids or ())
        sliding = config.num_sliding_layers or 0
        windowed = MaskRule(config.sliding_window, config.sliding_causal)
        self.rules = (windowed,) * sliding + (MaskRule(),) * (config.num_layers - sliding)
        self.fc = Linear(num_states * sizes.hidden_size, sizes.hidden_size)
        self.hidden_norm = RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in self.rules)
        self.norm = RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        frequencies = inverse_frequencies(sizes.head_dim, spec.rope_parameters)
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
        again = self.config.activation_checkpointing
        for layer, rule, memory in zip(layers[:-1], self.rules, context, strict=False):
            states = BlockStates(recomputed(again, layer, states, memory, by, attention[rule]))
        rule = self.rules[-1]
        last = recomputed(again, layers[-1], states, context[-1], by, attention[rule], wanted)
        return self.norm(last)[: len(keep)]

    @property
    def mask_embedding(self) -> Float[Tensor, "hidden"]:
        """Embedding of every slot but the first."""
        return self.embed_tokens[self.config.mask_token_id or 0]

    def choose(
        self, hidden: Float[Tensor, "start draft hidden"], newest: Int[Tensor, "start"]
    ) -> Int[Tensor, "start draft"]:
        """Return the verifier tokens drafted greedily from the slots' states.

        Args:
            hidden: input of the head at slots 1 to K.
            newest: token each block starts from, its slot 0.
        """
        return self.most_likely(hidden.flatten(0, 1)).view(hidden.shape[:2])

    def propose(
        self,
        hidden: Float[Tensor, "draft hidden"],
        newest: Int[Tensor, ""],
        temperature: float,
        generator: torch.Generator | None,
    ) -> Proposal:
        """Draft one block from its slots' states, see `DraftSession.propose`."""
        return self.draw(self.logits(hidden), temperature, generator)

    @property
    def stream_type(self) -> torch.dtype:
        """Number format of the residual stream: autocast's if it is on, else the weights'."""
        kind = self.fc.weight.device.type
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return self.fc.weight.dtype

    def _decoder_layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

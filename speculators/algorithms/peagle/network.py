"""All drafted tokens in one causal pass of Eagle's network.

A block is a confirmed row followed by mask slots. The row reads [next token; verifier states] as in
Eagle-3 and drafts the first token; every mask slot reads [mask token; a learned state], each one
position on, and drafts one more. Slots see the base before their row, the row, and earlier slots.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from speculators.algorithms.eagle3.layers import ChainLayer
from speculators.algorithms.eagle3.network import Encoded, FusedNetwork
from speculators.algorithms.peagle.config import PEagleConfig
from speculators.attention.backend import BlockAttention
from speculators.attention.layout import MaskRule
from speculators.modules.decoder import KeyValue
from speculators.modules.recompute import recomputed
from speculators.modules.rotary import Rotation, rotation
from speculators.verifier.spec import VerifierSpec


class PEagleNetwork(FusedNetwork):
    """Adds the learned state of mask slots.

    Args:
        config: resolved settings.
        spec: the verifier.
    """

    config: PEagleConfig
    spec: VerifierSpec

    def __init__(self, config: PEagleConfig, spec: VerifierSpec) -> None:
        super().__init__(config, spec, MaskRule(config.sliding_window, causal=True))
        self.config, self.spec = config, spec
        num_states = len(config.target_layer_ids or ())
        self.mask_hidden = nn.Parameter(torch.zeros(1, 1, num_states * spec.hidden_size))

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw matrices from N(0, 0.02) and the learned state from N(0, 1); norms are 1."""
        super().initialize(generator)
        self.mask_hidden.normal_(0.0, 1.0, generator=generator)

    @property
    def mask_embedding(self) -> Float[Tensor, "hidden"]:
        """Embedding of every slot but the first."""
        return self.embed_tokens[self.config.mask_token_id or 0]

    def run(
        self,
        base: Encoded,
        embeddings: Float[Tensor, "row hidden"],
        positions: Int[Tensor, "row slot"],
        rows: Int[Tensor, "row"],
        attend: BlockAttention,
    ) -> Float[Tensor, "row slot hidden"]:
        """Return the input of the head at every slot.

        Args:
            base: what blocks start from and see.
            embeddings: of the token each row pairs with its state.
            positions: of every slot, the row's own first.
            rows: where blocks start, as index into the rows of the base's last call.
            attend: causal attention of all slots to the base and to their block.
        """
        shape = (len(rows), positions.shape[1] - 1, base.fused.shape[1])
        learned = self.fuse(self.mask_hidden.view(1, -1, shape[2]))
        state = torch.cat([base.fused[rows][:, None], learned[:, None].expand(shape)], 1)
        masks = self.mask_embedding.to(state.dtype).expand(shape)
        embedding = torch.cat([embeddings.to(state.dtype)[:, None], masks], 1)
        by = rotation(positions, self.rope_frequencies)
        again = self.config.activation_checkpointing
        for layer, context in zip(self.chain_layers(), base.contexts, strict=True):
            state = recomputed(again, _block, layer, state, embedding, by, context, attend)
        return self.norm(state)


def _block(
    layer: ChainLayer,
    state: Float[Tensor, "row slot hidden"],
    embedding: Float[Tensor, "row slot hidden"],
    by: Rotation,
    context: KeyValue,
    attend: BlockAttention,
) -> Float[Tensor, "row slot hidden"]:
    """Run one layer over all slots, which attend to the base and to their block."""
    u, residual = layer.enter(state, embedding)
    return layer(u, residual, by, context, layer.keys(u, by), attend)

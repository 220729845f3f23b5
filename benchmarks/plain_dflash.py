"""The DFlash training step as one writes it first: the baseline of the benchmarks.

Plain PyTorch throughout: a dense boolean mask over all keys, `scaled_dot_product_attention`,
`nn.Linear`, `F.rms_norm`, and a cross-entropy over the logits of every slot, either all at once or
in chunks that are recomputed in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class PlainDFlash:
    """Functional drafter over the weights of a trained one, by their published names.

    Attributes:
        weights: as `named_parameters` of the drafter.
        embed_tokens: the verifier's embedding.
        lm_head: the verifier's head.
        num_layers: draft layers.
        head_dim: head size.
        block_size: slots per block.
        mask_token_id: token of all slots but the first.
        rope_theta: base of the rotary frequencies.
        eps: of the norms.
    """

    weights: dict[str, Tensor]
    embed_tokens: Tensor
    lm_head: Tensor
    num_layers: int
    head_dim: int
    block_size: int
    mask_token_id: int
    rope_theta: float
    eps: float

    def loss(
        self,
        states: Tensor,
        input_ids: Tensor,
        loss_mask: Tensor,
        document_ids: Tensor,
        position_ids: Tensor,
        anchors: Tensor,
        slot_weights: Tensor,
        chunk_slots: int | None,
    ) -> Tensor:
        """Return the weighted sum of cross-entropies over all slots.

        Args:
            states: verifier states, `sequence aux_layer * hidden`.
            input_ids: tokens of the row.
            loss_mask: supervised tokens.
            document_ids: document of each token.
            position_ids: position in the document.
            anchors: where blocks start.
            slot_weights: weight of each slot of a block.
            chunk_slots: slots per chunk of the head; None: all at once.
        """
        hidden = self._hidden(states, input_ids, document_ids, position_ids, anchors)
        target = anchors[:, None] + torch.arange(self.block_size)
        inside = target < len(input_ids)
        target = target.clamp(max=len(input_ids) - 1)
        same = document_ids[target] == document_ids[anchors][:, None]
        weights = (slot_weights * (inside & same & loss_mask[target])).flatten()
        labels = input_ids[target].flatten()
        if chunk_slots is None:
            return self._head_loss(hidden, labels, weights)
        parts = zip(
            hidden.split(chunk_slots), labels.split(chunk_slots), weights.split(chunk_slots),
            strict=True,
        )  # fmt: skip
        total = torch.zeros(())
        for x, y, w in parts:
            total = total + checkpoint(self._head_loss, x, y, w, use_reentrant=False)
        return total

    def _head_loss(self, hidden: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        logits = F.linear(hidden, self.lm_head)
        return (F.cross_entropy(logits, labels, reduction="none") * weights).sum()

    def _hidden(
        self,
        states: Tensor,
        input_ids: Tensor,
        document_ids: Tensor,
        position_ids: Tensor,
        anchors: Tensor,
    ) -> Tensor:
        size, length = self.block_size, len(input_ids)
        slots = torch.full((len(anchors), size), self.mask_token_id)
        slots[:, 0] = input_ids[anchors]
        x = F.embedding(slots.flatten(), self.embed_tokens)
        context = self._norm(F.linear(states, self.weights["fc.weight"]), "hidden_norm")

        positions = (position_ids[anchors][:, None] + torch.arange(size)).flatten()
        query_turn = self._turn(positions)
        key_turn = self._turn(torch.cat([position_ids, positions]))
        of_query = anchors.repeat_interleave(size)
        block = torch.arange(len(anchors)).repeat_interleave(size)
        index = torch.arange(length)
        same = document_ids[None] == document_ids[of_query][:, None]
        before = index[None] < of_query[:, None]
        mask = torch.cat([same & before, block[:, None] == block[None]], 1)
        for i in range(self.num_layers):
            x = self._layer(f"layers.{i}", x, context, query_turn, key_turn, mask)
        return self._norm(x, "norm")

    def _layer(
        self,
        name: str,
        x: Tensor,
        context: Tensor,
        query_turn: tuple[Tensor, Tensor],
        key_turn: tuple[Tensor, Tensor],
        mask: Tensor,
    ) -> Tensor:
        u = self._norm(x, f"{name}.input_layernorm")
        both = torch.cat([context, u])
        q = self._heads(u, f"{name}.self_attn.q_proj")
        k = self._heads(both, f"{name}.self_attn.k_proj")
        v = self._heads(both, f"{name}.self_attn.v_proj")
        q = _rotate(self._norm(q, f"{name}.self_attn.q_norm"), *query_turn)
        k = _rotate(self._norm(k, f"{name}.self_attn.k_norm"), *key_turn)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None],
            attn_mask=mask, enable_gqa=True,
        )  # fmt: skip
        out = out[0].transpose(0, 1).flatten(1)
        h = x + F.linear(out, self.weights[f"{name}.self_attn.o_proj.weight"])
        u = self._norm(h, f"{name}.post_attention_layernorm")
        gate = F.silu(F.linear(u, self.weights[f"{name}.mlp.gate_proj.weight"]))
        up = F.linear(u, self.weights[f"{name}.mlp.up_proj.weight"])
        return h + F.linear(gate * up, self.weights[f"{name}.mlp.down_proj.weight"])

    def _heads(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"]).unflatten(-1, (-1, self.head_dim))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weights[f"{name}.weight"], self.eps)

    def _turn(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        exponent = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        angles = positions[:, None].float() * self.rope_theta**-exponent
        angles = torch.cat([angles, angles], -1)[:, None]
        return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin

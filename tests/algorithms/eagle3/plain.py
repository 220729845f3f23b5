"""Eagle-3's training step as its specification writes it: dense masks, full logits, plain modules.

Shares no code with the drafter but the weights' names (Eagle-3 specification, sections 3 to 6).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from speculators.data.types import PackedBatch


@dataclass(frozen=True)
class PlainEagle3:
    """Weights by name, tables and the switches of the specification's section 3.

    `own_tokens`: verifier token of each row of the head; given, later steps read what the step
    before would draft, otherwise the token of the data (section 4).
    """

    weights: Mapping[str, Tensor]
    embed: Tensor
    head: Tensor
    num_layers: int
    head_dim: int
    steps: int
    window: int | None = None
    norm_before_residual: bool = True
    norm_output: bool = False
    own_tokens: Tensor | None = None
    theta: float = 10000.0
    eps: float = 1e-6

    def outputs(self, batch: PackedBatch) -> list[Tensor]:
        """Return the input of the head at every row, step by step."""
        state = self.fuse(batch.aux)
        seen: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in range(self.num_layers)]
        found: list[Tensor] = []
        for t in range(self.steps):
            embedding, state = self.read(batch, t, state, found)
            for i in range(self.num_layers):
                state = self._layer(i, state, embedding, batch, t, seen[i])
            found.append(self._norm(state, "norm"))
        return found

    def fuse(self, states: Tensor) -> Tensor:
        """Return one state per row from the verifier's."""
        x = states.flatten(1)
        if "input_norm.weight" in self.weights:
            x = self._norm(x, "input_norm")
        if "fc_norm.0.weight" in self.weights:
            parts = [self._norm(states[:, j], f"fc_norm.{j}") for j in range(states.shape[1])]
            x = torch.cat(parts, -1)
        return x @ self.weights["fc.weight"].T

    def read(
        self, batch: PackedBatch, t: int, state: Tensor, found: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return what every row reads at step t: embedding and state.

        Args:
            batch: the row.
            t: the step.
            state: the fused states, later the last layer's output of the step before.
            found: inputs of the head at the steps before.
        """
        length = len(batch.input_ids)
        token = batch.input_ids[(torch.arange(length) + 1 + t).clamp(max=length - 1)]
        if t > 0 and self.own_tokens is not None:
            token = self.own_tokens[(found[-1] @ self.head.T).argmax(-1)]
        return self.embed[token], found[-1] if t > 0 and self.norm_output else state

    def mask(self, batch: PackedBatch, t: int) -> Tensor:
        """Return what row i sees at step t: `row, (t + 1) * row` (section 5, entry by entry)."""
        documents = batch.document_ids.tolist()
        length = len(documents)
        window = self.window or 10**9
        mask = torch.zeros(length, (t + 1) * length, dtype=torch.bool)
        for i in range(length):
            for p in range(i + 1):
                mask[i, p] = documents[p] == documents[i] >= 0 and (i + t) - p < window
            for s in range(t + 1):
                near = t - s < window
                mask[i, s * length + i] |= near and (s > 0 or documents[i] < 0)
        return mask

    def _layer(
        self,
        i: int,
        state: Tensor,
        embedding: Tensor,
        batch: PackedBatch,
        t: int,
        seen: tuple[list[Tensor], list[Tensor]],
    ) -> Tensor:
        at = f"layers.{i}"
        if i == 0:
            h = self._norm(state, f"{at}.hidden_norm")
            u = torch.cat([self._norm(embedding, f"{at}.input_layernorm"), h], -1)
            residual = h if self.norm_before_residual else state
        else:
            u, residual = self._norm(state, f"{at}.input_layernorm"), state
        q, k, v = (
            (u @ self.weights[f"{at}.self_attn.{n}_proj.weight"].T).unflatten(
                -1, (-1, self.head_dim)
            )
            for n in "qkv"
        )
        if f"{at}.self_attn.q_norm.weight" in self.weights:
            q, k = self._norm(q, f"{at}.self_attn.q_norm"), self._norm(k, f"{at}.self_attn.k_norm")
        positions = batch.position_ids + t
        seen[0].append(self._turn(k, positions))
        seen[1].append(v)
        groups = q.shape[1] // k.shape[1]
        keys = torch.cat(seen[0]).repeat_interleave(groups, 1)
        values = torch.cat(seen[1]).repeat_interleave(groups, 1)
        scores = torch.einsum("qhd,khd->hqk", self._turn(q, positions), keys) * self.head_dim**-0.5
        p = scores.masked_fill(~self.mask(batch, t), -torch.inf).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", p, values).flatten(1)
        x = residual + mixed @ self.weights[f"{at}.self_attn.o_proj.weight"].T
        y = self._norm(x, f"{at}.post_attention_layernorm")
        gate, up, down = (self.weights[f"{at}.mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
        return x + (F.silu(y @ gate.T) * (y @ up.T)) @ down.T

    def _norm(self, x: Tensor, name: str) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return x * scale * self.weights[f"{name}.weight"]

    def _turn(self, x: Tensor, positions: Tensor) -> Tensor:
        half = self.head_dim // 2
        frequencies = self.theta ** -(torch.arange(half, dtype=torch.float32) / half)
        angles = (positions[:, None].float() * frequencies)[:, None].to(x.dtype)
        a, b = x[..., :half], x[..., half:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

"""Weights and passes of an Eagle-3 drafter, from verifier states to drafted tokens.

Row i of the base pairs the verifier's states at token i with the embedding of token i + 1. A chain
starts at a row and goes on for some steps; at each it reads its own last output beside the token
that came next. It sees the base rows before its own, its own row, and its own earlier steps
(Eagle-3 specification, sections 3 to 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.fused_config import FusedLayersConfig, LayerType
from speculators.algorithms.eagle3.layers import ChainLayer
from speculators.algorithms.tables import DraftTables
from speculators.attention.backend import BlockAttention
from speculators.attention.layout import MaskRule
from speculators.modules.decoder import KeyValue, LayerSizes
from speculators.modules.gemm import Linear
from speculators.modules.norm import RMSNorm
from speculators.modules.recompute import recomputed
from speculators.modules.rotary import inverse_frequencies, rotation
from speculators.verifier.spec import VerifierSpec

_INIT_STD = 0.02

Keep = Callable[[int, KeyValue], KeyValue]
"""Takes the base keys of a layer; returns all that its rows may see."""


@dataclass(frozen=True)
class Encoded:
    """The base: one row per token, seen by whatever is drafted after it.

    Attributes:
        fused: state that enters the first layer.
        last: state that enters the last layer.
        contexts: keys and values of all rows in every layer, earlier calls included.
        fresh: those of this call's rows.
    """

    fused: Float[Tensor, "token hidden"]
    last: Float[Tensor, "token hidden"]
    contexts: Sequence[KeyValue]
    fresh: Sequence[KeyValue]


class FusedNetwork(DraftTables):
    """Fuses verifier states, and runs rows of [token; state] through causal decoder layers.

    Args:
        config: resolved settings.
        spec: the verifier.
        rule: mask of every layer.
        fc_norm: norm every fused state by itself.

    Attributes:
        rule: as given.
    """

    rope_frequencies: Tensor

    def __init__(
        self,
        config: FusedLayersConfig,
        spec: VerifierSpec,
        rule: MaskRule,
        *,
        fc_norm: bool = False,
    ) -> None:
        super().__init__()
        self.rule = rule
        sizes, num_states = LayerSizes.of(config, spec), len(config.target_layer_ids or ())
        hidden, eps = spec.hidden_size, spec.rms_norm_eps
        self.fc = Linear(num_states * hidden, hidden)
        self.input_norm = RMSNorm(num_states * hidden, eps) if config.norm_before_fc else None
        norms = (RMSNorm(hidden, eps) for _ in range(num_states))
        self.fc_norm = nn.ModuleList(norms) if fc_norm else None
        self.layers = nn.ModuleList(
            ChainLayer(
                sizes,
                fused=index == 0,
                head_norms=config.layer_type is LayerType.qwen3,
                norm_before_residual=config.norm_before_residual,
            )
            for index in range(config.num_layers)
        )
        self.norm = RMSNorm(hidden, eps)
        frequencies = inverse_frequencies(sizes.head_dim, spec.rope_parameters)
        self.register_buffer("rope_frequencies", frequencies, persistent=False)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw matrices from N(0, 0.02); norms are 1."""
        for name, parameter in self.named_parameters():
            if name.startswith("lm_head"):
                continue
            if parameter.ndim == 2:
                parameter.normal_(0.0, _INIT_STD, generator=generator)
            else:
                parameter.fill_(1.0)

    def fuse(
        self, states: Float[Tensor, "token aux_layer hidden"]
    ) -> Float[Tensor, "token hidden"]:
        """Return one state per token from the verifier's, in any number format."""
        x = states.to(self.stream_type)
        if self.fc_norm is not None:
            x = torch.stack([norm(x[:, j]) for j, norm in enumerate(self.fc_norm)], 1)
        x = x.flatten(1)
        return self.fc(x if self.input_norm is None else self.input_norm(x))

    def encode(
        self,
        embeddings: Float[Tensor, "token hidden"],
        states: Float[Tensor, "token aux_layer hidden"],
        positions: Int[Tensor, "token"],
        attend_all: BlockAttention | None = None,
        keep: Keep = lambda layer, keys: keys,
    ) -> Encoded:
        """Run the base as far as what is drafted after it needs: keys in every layer.

        Args:
            embeddings: of the token after each.
            states: the verifier's at each token.
            positions: of each token in its document.
            attend_all: attention of all rows to the base; needed with more than one layer.
            keep: joins keys of earlier calls.
        """
        fused = state = self.fuse(states)
        embeddings = embeddings.to(state.dtype)
        by = rotation(positions[:, None], self.rope_frequencies)
        contexts, fresh = [], []
        layers = self.chain_layers()
        for index, layer in enumerate(layers):
            u, residual = layer.enter(state[:, None], embeddings[:, None])
            mine = layer.keys(u, by)
            fresh.append(KeyValue(mine.keys[:, 0], mine.values[:, 0]))
            contexts.append(keep(index, fresh[-1]))
            if index + 1 < len(layers):
                assert attend_all is not None
                state = layer(u, residual, by, contexts[-1], mine, attend_all)[:, 0]
        return Encoded(fused, state, contexts, fresh)

    @property
    def stream_type(self) -> torch.dtype:
        """Number format of the residual stream: autocast's if it is on, else the weights'."""
        kind = self.fc.weight.device.type
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return self.fc.weight.dtype

    def chain_layers(self) -> list[ChainLayer]:
        """Return the decoder layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, ChainLayer)]


class Eagle3Network(FusedNetwork):
    """Adds the chain: output fed back as state.

    Args:
        config: resolved settings.
        spec: the verifier.
    """

    config: Eagle3Config
    spec: VerifierSpec

    def __init__(self, config: Eagle3Config, spec: VerifierSpec) -> None:
        super().__init__(config, spec, MaskRule(config.sliding_window), fc_norm=config.fc_norm)
        self.config, self.spec = config, spec

    def unroll(
        self,
        base: Encoded,
        embeddings: Float[Tensor, "row hidden"],
        positions: Int[Tensor, "row"],
        rows: Int[Tensor, "row"],
        num_steps: int,
        following: Callable[[int, Tensor], Tensor],
        attention: Callable[[int], BlockAttention],
        *,
        recompute: bool = False,
    ) -> list[Float[Tensor, "row hidden"]]:
        """Return the input of the head at each step of the chains.

        Args:
            base: what they start from and see.
            embeddings: of the token each row pairs with its state.
            positions: of these rows in their documents.
            rows: the rows, as index into those of the base's last call.
            num_steps: steps, the base row's own included.
            following: embedding of the next token, from the step and the input of its head.
            attention: attention of the rows at a step, to the base and their own `step + 1` slots.
            recompute: compute steps again in the backward pass instead of keeping what it needs.
        """
        own = [[KeyValue(kv.keys[rows], kv.values[rows])] for kv in base.fresh]
        state, outputs = self._first(base, embeddings, positions, rows, own, attention(0)), []
        for step in range(num_steps):
            normed = self.norm(state)
            outputs.append(normed)
            if step + 1 == num_steps:
                break
            at = positions[:, None] + step + 1
            fed = normed if self.config.norm_output else state
            before = [tuple(keys) for keys in own]
            embedding, attend = following(step, normed), attention(step + 1)
            state, fresh = recomputed(
                recompute, self.follow, embedding, fed, at, base.contexts, before, attend
            )
            for kept, keys in zip(own, fresh, strict=True):
                kept.append(keys)
        return outputs

    def _first(
        self,
        base: Encoded,
        embeddings: Tensor,
        positions: Tensor,
        rows: Tensor,
        own: Sequence[Sequence[KeyValue]],
        attend: BlockAttention,
    ) -> Float[Tensor, "row hidden"]:
        """Finish the base rows chains start from: the last layer, for them alone."""
        state, layer = base.last[rows], self.chain_layers()[-1]
        u, residual = layer.enter(state[:, None], embeddings.to(state.dtype)[:, None])
        by = rotation(positions[:, None], self.rope_frequencies)
        mine = KeyValue(own[-1][0].keys[:, None], own[-1][0].values[:, None])
        return layer(u, residual, by, base.contexts[-1], mine, attend)[:, 0]

    def follow(
        self,
        embeddings: Float[Tensor, "row hidden"],
        state: Float[Tensor, "row hidden"],
        positions: Int[Tensor, "row 1"],
        contexts: Sequence[KeyValue],
        before: Sequence[tuple[KeyValue, ...]],
        attend: BlockAttention,
    ) -> tuple[Float[Tensor, "row hidden"], list[KeyValue]]:
        """Run one later step; return its output and its keys in every layer.

        Args:
            embeddings: of the token that came next.
            state: what the step before fed back.
            positions: of this step.
            contexts: keys of the base, by layer.
            before: keys of each row's own earlier slots, by layer and step.
            attend: attention to the base and to all own slots.
        """
        by = rotation(positions, self.rope_frequencies)
        state, embeddings = state[:, None], embeddings.to(state.dtype)[:, None]
        fresh = []
        for layer, context, earlier in zip(self.chain_layers(), contexts, before, strict=True):
            u, residual = layer.enter(state, embeddings)
            keys = layer.keys(u, by)
            fresh.append(KeyValue(keys.keys[:, 0], keys.values[:, 0]))
            slots = [*earlier, fresh[-1]]
            own = KeyValue(
                torch.stack([slot.keys for slot in slots], 1),
                torch.stack([slot.values for slot in slots], 1),
            )
            state = layer(u, residual, by, context, own, attend)
        return state[:, 0], fresh

"""The DFlash drafter: training forward, batched drafting, and what its checkpoints hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from speculators.algorithms.anchors import (
    anchor_candidates,
    even_anchors,
    fill_anchors,
    fixed_anchors,
    random_anchors,
    walk_anchors,
)
from speculators.algorithms.base import DraftSession, Output, StepContext
from speculators.algorithms.conventions import Conventions
from speculators.algorithms.cost import StepCost, Workload
from speculators.algorithms.dflash import resolve as resolving
from speculators.algorithms.dflash import serving
from speculators.algorithms.dflash.config import AnchorStrategy, DFlashConfig, PositionWeights
from speculators.algorithms.dflash.cost import dflash_cost
from speculators.algorithms.dflash.loss import divisor, dpace_weights, slot_weights
from speculators.algorithms.dflash.network import DFlashNetwork
from speculators.algorithms.dflash.session import DFlashSession
from speculators.algorithms.dflash.start import copy_layers
from speculators.algorithms.metrics import training_metrics
from speculators.algorithms.noise import noisy
from speculators.algorithms.objective import labelled, on_grid, skips_unreachable, slot_losses
from speculators.algorithms.served import ServedDrafter
from speculators.algorithms.slots import HostRow, SlotPlan, plan_slots
from speculators.attention.backend import prepare_attention
from speculators.attention.layout import BlockLayout
from speculators.config.schema import AttentionBackend
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.modules.chunked_head import ChunkedLoss
from speculators.modules.decoder import LayerSizes
from speculators.modules.transfer import send
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec

_DRAFT_SLOTS = 4096
_CONTEXT_MULTIPLE = 64


class DFlashDrafter(DFlashNetwork, ServedDrafter[DFlashConfig]):
    """Drafts a block in one pass: [newest token, MASK, ...] over the verifier's earlier states.

    Args:
        config: resolved settings.
        spec: the verifier.
        vocabulary: tokens that can be drafted.
        embed_tokens: the verifier's embedding, shared.
        lm_head: the verifier's head.
        attention: backend.
    """

    speculators_model_type: ClassVar[str] = "dflash"
    contract: ClassVar[Any] = serving
    free_serving_keys: ClassVar[frozenset[str]] = frozenset({"block_size"})

    def __init__(
        self,
        config: DFlashConfig,
        spec: VerifierSpec,
        vocabulary: DraftVocabulary,
        *,
        embed_tokens: Float[Tensor, "vocab hidden"],
        lm_head: Float[Tensor, "vocab hidden"],
        attention: AttentionBackend,
    ) -> None:
        super().__init__(config, spec)
        self.attention = attention
        self.add_tables(vocabulary, embed_tokens, lm_head)

    @classmethod
    def resolve(
        cls, config: DFlashConfig, spec: VerifierSpec, unused_token_ids: list[int]
    ) -> DFlashConfig:
        """Fill in what depends on the verifier, see `Drafter.resolve`."""
        return resolving.resolve(config, spec, unused_token_ids)

    def copied_layers(self) -> list[int]:
        """Spread the draft layers over the verifier's depth, its first and last included.

        Slots enter as embeddings and leave for the head, so the ends fit best.
        """
        last, count = self.spec.num_layers - 1, self.config.num_layers
        return [round(i * last / (count - 1)) for i in range(count)] if count > 1 else [last]

    def start_from_verifier(
        self, layers: Sequence[Mapping[str, Tensor]], norm_weight: Float[Tensor, "hidden"]
    ) -> None:
        """Copy the verifier's layers, see `Drafter.start_from_verifier`."""
        copy_layers(self, layers, norm_weight)

    @property
    def num_draft_tokens(self) -> int:
        """Tokens drafted per pass: the block without its anchor."""
        return self.config.block_size - 1

    def set_num_draft_tokens(self, count: int) -> None:
        """Draft another number of tokens, see `Drafter.set_num_draft_tokens`."""
        self.config = replace(self.config, block_size=count + 1)

    def compute_loss(self, batch: PackedBatch, teacher: VerifierHead, step: StepContext) -> Output:
        """Train on blocks of one packed row, see `Drafter.compute_loss`.

        In training mode anchors and noise follow from `step`; otherwise anchors are spread evenly
        and there is no noise.
        """
        row = HostRow.of(batch)
        anchors = self._choose_anchors(batch, row, step)
        layout = self._layout(row, anchors, self.config.max_anchors)
        plan = plan_slots(
            row, layout, self.draft_ids, skip_unreachable=skips_unreachable(self.config)
        )
        states = batch.aux[: layout.sequence_length]
        states = noisy(states, self.config.input_noise if self.training else 0.0, step)
        hidden = self._hidden(states, batch.input_ids, layout, plan.flat)
        return self.train_slots(hidden, batch, teacher, plan, layout)

    def conventions(self) -> Conventions:
        """Return what this drafter computes with, see `Drafter.conventions`."""
        return Conventions(
            layer_ids=tuple(self.config.target_layer_ids or ()),
            num_draft_tokens=self.num_draft_tokens,
            rules=self.rules,
            rope=tuple(self.rope_frequencies.tolist()),
            rms_norm_eps=self.norm.eps,
            mask_token_id=self.config.mask_token_id,
        )

    def step_cost(self, work: Workload) -> StepCost:
        """Count from sizes, see `Drafter.step_cost`."""
        sizes, terms = LayerSizes.of(self.config, self.spec), self.config.loss.active()
        return dflash_cost(self.config, sizes, len(self.vocabulary), terms, work)

    def start_candidates(self, batch: PackedBatch) -> Bool[Tensor, "sequence"]:
        """Mark the tokens that can be anchors, see `Drafter.start_candidates`."""
        return anchor_candidates(batch.loss_mask, batch.document_ids)

    @torch.no_grad()
    def draft(self, batch: PackedBatch, starts: Int[Tensor, "start"]) -> Int[Tensor, "start draft"]:
        """Draft after each of `starts`, see `Drafter.draft`. Memory is bounded by chunks."""
        row = HostRow.of(batch)
        size = self.config.block_size
        drafted = []
        for chunk in starts.cpu().split(max(1, _DRAFT_SLOTS // size)):
            layout = self._layout(row, chunk, _DRAFT_SLOTS // size)
            keep = torch.arange(len(chunk) * size).view(-1, size)[:, 1:].flatten()
            states = batch.aux[: layout.sequence_length]
            hidden = self._hidden(states, batch.input_ids, layout, keep)
            newest = batch.input_ids[send(chunk, batch.input_ids.device)]
            drafted.append(self.choose(hidden.view(len(chunk), size - 1, hidden.shape[1]), newest))
        return torch.cat(drafted)

    def new_session(self) -> DraftSession:
        """Start drafting along one sequence, see `Drafter.new_session`."""
        return DFlashSession(self)

    def _choose_anchors(
        self, batch: PackedBatch, row: HostRow, step: StepContext
    ) -> Int[Tensor, "anchor"]:
        candidates = anchor_candidates(row.loss_mask, row.document_ids)
        budget, size = self.config.max_anchors, self.config.block_size
        if not self.training:
            return even_anchors(candidates, row.document_ids, budget)
        generator = step.generator("anchors")
        if self.config.anchor_strategy is AnchorStrategy.random:
            return random_anchors(candidates, budget, generator)
        if self.config.anchor_strategy is AnchorStrategy.fixed:
            return fixed_anchors(candidates, row.document_ids, budget, size, generator)
        starts = candidates.nonzero().flatten()
        if not len(starts):
            return starts
        runs = self._runs(batch, row, starts)
        return walk_anchors(starts.tolist(), runs, row.document_ids, budget, size, generator)

    def _runs(self, batch: PackedBatch, row: HostRow, starts: Tensor) -> dict[int, int]:
        """Return how many drafted tokens after each start are those of the data."""
        drafted = self.draft(batch, starts).cpu()
        target = starts[:, None] + torch.arange(1, self.config.block_size)
        inside = target < len(row.input_ids)
        target = target.clamp(max=len(row.input_ids) - 1)
        same = row.document_ids[target] == row.document_ids[starts][:, None]
        right = inside & same & row.loss_mask[target] & (row.input_ids[target] == drafted)
        return dict(zip(starts.tolist(), right.cumprod(-1).sum(-1).tolist(), strict=True))

    def _layout(
        self, row: HostRow, anchors: Int[Tensor, "anchor"], most_blocks: int
    ) -> BlockLayout:
        """Return the blocks, filled up; on a CPU the row ends where nothing is visible any more."""
        device = self.lm_head.weight.device
        size, length = self.config.block_size, len(row.document_ids)
        filled = fill_anchors(
            anchors, self.config.max_anchors, size, on_accelerator=device.type != "cpu"
        )
        if device.type == "cpu":
            needed = int(anchors[-1]) + 1 if len(anchors) else 1
            length = min(length, -(-needed // _CONTEXT_MULTIPLE) * _CONTEXT_MULTIPLE)
        return BlockLayout(
            filled,
            len(anchors),
            row.document_ids[:length],
            row.position_ids[:length],
            size,
            most_blocks=most_blocks,
        )

    def _hidden(
        self,
        states: Float[Tensor, "token aux_layer hidden"],
        input_ids: Int[Tensor, "sequence"],
        layout: BlockLayout,
        keep: Int[Tensor, "slot"],
    ) -> Float[Tensor, "slot hidden"]:
        """Return the input of the head at the slots `keep` of the blocks."""
        device = states.device
        gradients = torch.is_grad_enabled()
        attention = {
            rule: prepare_attention(layout, rule, self.attention, device, gradients=gradients)
            for rule in dict.fromkeys(self.rules)
        }
        here = layout.to(device)
        return self.run(
            self.embed(input_ids[here.anchors]),
            self.mask_embedding,
            here.slot_positions(),
            self.encode(states, here.position_ids),
            attention,
            send(keep, device),
        )

    def train_slots(
        self,
        hidden: Float[Tensor, "slot hidden"],
        batch: PackedBatch,
        teacher: VerifierHead,
        plan: SlotPlan,
        layout: BlockLayout,
    ) -> Output:
        """Compare the slots' states with the data and the verifier.

        Args:
            hidden: input of the head at the slots of `plan`.
            batch: the packed row.
            teacher: the verifier's norm and head.
            plan: the slots.
            layout: the blocks they belong to.
        """
        rows = self.lm_head.weight
        loss = slot_losses(hidden, rows, plan, batch, teacher, self.config, rows=rows)
        return self.weighted(loss, plan)

    def weighted(self, loss: ChunkedLoss, plan: SlotPlan) -> Output:
        """Sum the losses of slots with their weights, and count."""
        device, config = loss.loss.device, self.config
        flat = send(plan.flat, device)
        supervised = send(plan.supervised, device)
        known = labelled(plan, config, device)
        if config.position_weights is PositionWeights.dpace:
            ce, trained = (on_grid(v, flat, supervised) for v in (loss.terms["ce"], known))
            weights = dpace_weights(ce, trained, config.dpace_alpha).flatten()[flat]
        else:
            weights = self.slot_weights(device)[flat % config.block_size]
        right = on_grid(loss.correct, flat, supervised)
        sums, counts = training_metrics(plan, supervised, right, loss.terms, known)
        total = (weights * loss.loss).sum()
        return Output(total, divisor(weights, config.normalization), sums, counts)

    def slot_weights(self, device: torch.device) -> Float[Tensor, "block"]:
        """Return how much each slot of a block counts, whatever its loss."""
        config = self.config
        gamma = config.loss_decay_gamma or 1.0
        return send(slot_weights(config.position_weights, config.block_size, gamma), device)

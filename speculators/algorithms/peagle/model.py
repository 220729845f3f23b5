"""The P-EAGLE drafter: training forward, batched drafting, and what its checkpoints hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from speculators.algorithms.anchors import (
    anchors_with_predecessor,
    even_anchors,
    fill_anchors,
    random_anchors,
)
from speculators.algorithms.base import DraftSession, Output, StepContext
from speculators.algorithms.conventions import Conventions
from speculators.algorithms.cost import StepCost, Workload
from speculators.algorithms.eagle3.fused_conventions import fused_conventions
from speculators.algorithms.eagle3.resolve import fill_fused
from speculators.algorithms.metrics import training_metrics
from speculators.algorithms.noise import noisy
from speculators.algorithms.objective import labelled, on_grid, skips_unreachable, slot_losses
from speculators.algorithms.peagle import serving
from speculators.algorithms.peagle.config import PEagleConfig
from speculators.algorithms.peagle.cost import peagle_cost
from speculators.algorithms.peagle.network import PEagleNetwork
from speculators.algorithms.peagle.session import PEagleSession
from speculators.algorithms.resolving import mask_problems, refuse, unused_token
from speculators.algorithms.served import ServedDrafter
from speculators.algorithms.slots import HostRow, plan_slots
from speculators.attention.backend import prepare_attention
from speculators.attention.layout import BlockLayout
from speculators.config.schema import AttentionBackend
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.modules.decoder import LayerSizes
from speculators.modules.transfer import send
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec


class PEagleDrafter(PEagleNetwork, ServedDrafter[PEagleConfig]):
    """Drafts a block in one pass over the verifier's states, causally.

    Args:
        config: resolved settings.
        spec: the verifier.
        vocabulary: tokens that can be drafted.
        embed_tokens: the verifier's embedding, shared.
        lm_head: the verifier's head.
        attention: backend.
    """

    speculators_model_type: ClassVar[str] = "peagle"
    contract: ClassVar[Any] = serving

    def __init__(
        self,
        config: PEagleConfig,
        spec: VerifierSpec,
        vocabulary: DraftVocabulary,
        *,
        embed_tokens: Float[Tensor, "vocab hidden"],
        lm_head: Float[Tensor, "vocab hidden"],
        attention: AttentionBackend,
    ) -> None:
        super().__init__(config, spec)
        self.attention = attention
        self.add_tables(vocabulary, embed_tokens, lm_head, train_head=config.train_lm_head)

    @classmethod
    def resolve(
        cls, config: PEagleConfig, spec: VerifierSpec, unused_token_ids: list[int]
    ) -> PEagleConfig:
        """Fill in what depends on the verifier, see `Drafter.resolve`."""
        filled = fill_fused(config, spec, mask_token_id=unused_token(spec, unused_token_ids))
        return refuse(filled, spec, mask_problems(filled.mask_token_id, spec, unused_token_ids))

    @property
    def num_draft_tokens(self) -> int:
        """Tokens of one block."""
        return self.config.num_draft_tokens

    def set_num_draft_tokens(self, count: int) -> None:
        """Draft another number of tokens, see `Drafter.set_num_draft_tokens`."""
        self.config = replace(self.config, num_draft_tokens=count)

    def compute_loss(self, batch: PackedBatch, teacher: VerifierHead, step: StepContext) -> Output:
        """Train on blocks of one packed row, see `Drafter.compute_loss`."""
        config, row = self.config, HostRow.of(batch)
        candidates = anchors_with_predecessor(row.loss_mask, row.document_ids)
        if self.training:
            starts = random_anchors(candidates, config.max_anchors, step.generator("anchors"))
        else:
            starts = even_anchors(candidates, row.document_ids, config.max_anchors)
        layout = self._layout(row, starts, config.max_anchors)
        size = config.num_draft_tokens
        plan = plan_slots(
            row,
            replace(layout, block_size=size + 1),
            self.draft_ids,
            skip_unreachable=skips_unreachable(config),
        )
        states = noisy(batch.aux, config.input_noise if self.training else 0.0, step)
        hidden = self._blocks(states, batch, layout)
        flat = send(plan.flat, hidden.device)
        slots = flat % (size + 1) - 1
        chosen = hidden.flatten(0, 1)[flat // (size + 1) * size + slots]
        head = self.lm_head.weight
        loss = slot_losses(
            chosen, head, plan, batch, teacher, config, rows=self.verifier_rows(teacher)
        )
        supervised = send(plan.supervised, hidden.device)
        right = on_grid(loss.correct, flat, supervised)
        known = labelled(plan, config, hidden.device)
        sums, counts = training_metrics(plan, supervised, right, loss.terms, known)
        weights = config.slot_decay ** slots.to(loss.loss.dtype)
        return Output((weights * loss.loss).sum(), weights.sum(), sums, counts)

    def conventions(self) -> Conventions:
        """Return what this drafter computes with, see `Drafter.conventions`."""
        return fused_conventions(
            self, self.config, self.num_draft_tokens, mask_token_id=self.config.mask_token_id
        )

    def step_cost(self, work: Workload) -> StepCost:
        """Count from sizes, see `Drafter.step_cost`."""
        sizes = LayerSizes.of(self.config, self.spec)
        return peagle_cost(self.config, sizes, len(self.vocabulary), work)

    def start_candidates(self, batch: PackedBatch) -> Bool[Tensor, "sequence"]:
        """Mark response tokens whose predecessor has a state, see `Drafter.start_candidates`."""
        return anchors_with_predecessor(batch.loss_mask, batch.document_ids)

    @torch.no_grad()
    def draft(self, batch: PackedBatch, starts: Int[Tensor, "start"]) -> Int[Tensor, "start draft"]:
        """Draft a block after each of `starts`, see `Drafter.draft`."""
        if not len(starts):
            return starts.new_empty((0, self.num_draft_tokens))
        layout = self._layout(HostRow.of(batch), starts.cpu(), len(batch.input_ids))
        hidden = self._blocks(batch.aux, batch, layout)[: len(starts)]
        return self.most_likely(hidden.flatten(0, 1)).view(hidden.shape[:2])

    def new_session(self) -> DraftSession:
        """Start drafting along one sequence, see `Drafter.new_session`."""
        return PEagleSession(self)

    def _layout(self, row: HostRow, starts: Int[Tensor, "start"], most_blocks: int) -> BlockLayout:
        size = self.config.num_draft_tokens
        accelerated = self.fc.weight.device.type != "cpu"
        filled = fill_anchors(starts, self.config.max_anchors, size, on_accelerator=accelerated)
        return BlockLayout(
            filled, len(starts), row.document_ids, row.position_ids, size, most_blocks=most_blocks
        )

    def _blocks(
        self,
        states: Float[Tensor, "sequence aux_layer hidden"],
        batch: PackedBatch,
        layout: BlockLayout,
    ) -> Float[Tensor, "start draft hidden"]:
        """Return the input of the head at every slot of a block after each start."""
        device, length = states.device, layout.sequence_length
        gradients = torch.is_grad_enabled()
        blocks = replace(layout, anchors=(layout.anchors - 1).clamp(min=0))
        here = blocks.to(device)
        after = torch.arange(1, length + 1, device=device).clamp(max=length - 1)
        embeddings = self.embed(batch.input_ids[after])
        every = None
        if self.config.num_layers > 1:
            rows = replace(blocks, anchors=torch.arange(length), num_valid=length, block_size=1)
            every = prepare_attention(rows, self.rule, self.attention, device, gradients=gradients)
        base = self.encode(embeddings, states, here.position_ids, every)
        return self.run(
            base,
            embeddings[here.anchors],
            here.slot_positions(),
            here.anchors,
            prepare_attention(blocks, self.rule, self.attention, device, gradients=gradients),
        )

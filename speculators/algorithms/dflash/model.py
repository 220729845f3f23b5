"""The DFlash drafter: training forward, batched drafting, and what its checkpoints hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from speculators.algorithms.base import Drafter, DraftSession, Output, StepContext
from speculators.algorithms.dflash import resolve as resolving
from speculators.algorithms.dflash import serving
from speculators.algorithms.dflash.anchors import (
    anchor_candidates,
    even_anchors,
    fill_anchors,
    random_anchors,
    walk_anchors,
)
from speculators.algorithms.dflash.config import (
    AnchorStrategy,
    CeLabels,
    DFlashConfig,
    PositionWeights,
)
from speculators.algorithms.dflash.loss import divisor, dpace_weights, slot_weights
from speculators.algorithms.dflash.metrics import training_metrics
from speculators.algorithms.dflash.network import DFlashNetwork
from speculators.algorithms.dflash.session import DFlashSession
from speculators.algorithms.dflash.slots import HostRow, SlotPlan, plan_slots
from speculators.algorithms.dflash.start import copy_layers
from speculators.attention.backend import prepare_attention
from speculators.attention.layout import BlockLayout, MaskRule
from speculators.config.schema import AttentionBackend
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.modules.chunked_head import ChunkedLoss, Teacher, chunked_head_loss
from speculators.modules.decoder import LayerSizes
from speculators.modules.divergences import needs_verifier
from speculators.modules.partition import top_tokens
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec

_DRAFT_SLOTS = 4096
_CONTEXT_MULTIPLE = 64


class DFlashDrafter(DFlashNetwork, Drafter[DFlashConfig]):
    """Drafts a block in one pass: [newest token, MASK, ...] over the verifier's earlier states.

    Embedding and head are the verifier's, frozen, in the number format they come in; give them in
    the format of the arithmetic (fp32 on a CPU, bf16 on a GPU) to save a conversion per step.

    Args:
        config: resolved settings.
        spec: the verifier.
        vocabulary: tokens that can be drafted.
        embed_tokens: the verifier's embedding, shared.
        lm_head: rows of the verifier's head in the order of the draft vocabulary.
        attention: backend.
    """

    speculators_model_type: ClassVar[str] = "dflash"
    embed_tokens: Tensor
    lm_head: Tensor
    token_ids: Tensor

    def __init__(
        self,
        config: DFlashConfig,
        spec: VerifierSpec,
        vocabulary: DraftVocabulary,
        *,
        embed_tokens: Float[Tensor, "vocab hidden"],
        lm_head: Float[Tensor, "draft_vocab hidden"],
        attention: AttentionBackend,
    ) -> None:
        sliding = config.num_sliding_layers or 0
        rules = [MaskRule(config.sliding_window, config.sliding_causal)] * sliding
        rules += [MaskRule()] * (config.num_layers - sliding)
        states = len(config.target_layer_ids or ())
        super().__init__(_sizes(config, spec), states, rules, spec.rope_parameters)
        self.config, self.spec, self.vocabulary = config, spec, vocabulary
        self.attention = attention
        self.register_buffer("embed_tokens", embed_tokens, persistent=False)
        self.register_buffer("lm_head", lm_head, persistent=False)
        self.register_buffer("token_ids", vocabulary.ids, persistent=False)
        self._draft_ids = None if vocabulary.is_full else vocabulary.draft_ids()

    @classmethod
    def resolve(
        cls, config: DFlashConfig, spec: VerifierSpec, unused_token_ids: list[int]
    ) -> DFlashConfig:
        """Fill in what depends on the verifier, see `Drafter.resolve`."""
        return resolving.resolve(config, spec, unused_token_ids)

    @classmethod
    def build(
        cls,
        config: DFlashConfig,
        spec: VerifierSpec,
        vocabulary: DraftVocabulary,
        *,
        embed_tokens: Float[Tensor, "vocab hidden"],
        lm_head: Float[Tensor, "vocab hidden"],
        generator: torch.Generator,
        attention: AttentionBackend = AttentionBackend.auto,
    ) -> DFlashDrafter:
        """Build an untrained drafter, see `Drafter.build`."""
        head = lm_head if vocabulary.is_full else lm_head[vocabulary.ids.to(lm_head.device)]
        drafter = cls(
            config,
            spec,
            vocabulary,
            embed_tokens=embed_tokens,
            lm_head=head,
            attention=attention,
        )
        drafter.initialize(generator)
        return drafter

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

    def compute_loss(self, batch: PackedBatch, teacher: VerifierHead, step: StepContext) -> Output:
        """Train on blocks of one packed row, see `Drafter.compute_loss`.

        In training mode anchors and noise follow from `step`; otherwise anchors are spread evenly
        and there is no noise.
        """
        row = HostRow.of(batch)
        layout = self._layout(row, self._choose_anchors(batch, row, step))
        against_verifier = self.config.ce_labels is CeLabels.verifier
        weights = self.config.loss.active()
        plan = plan_slots(
            row,
            layout,
            self._draft_ids,
            skip_unreachable=not (against_verifier or needs_verifier(weights)),
        )
        states = batch.aux[: layout.sequence_length]
        hidden = self._hidden(self._noisy(states, step), batch.input_ids, layout, plan.flat)
        loss = self._loss(hidden, batch, teacher, plan)
        return self._output(loss, plan)

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
            layout = self._layout(row, chunk)
            keep = torch.arange(len(chunk) * size).view(-1, size)[:, 1:].flatten()
            states = batch.aux[: layout.sequence_length]
            hidden = self._hidden(states, batch.input_ids, layout, keep)
            tokens = top_tokens(hidden.to(self.lm_head.dtype), self.lm_head)
            drafted.append(self.token_ids[tokens].view(len(chunk), size - 1))
        return torch.cat(drafted)

    def new_session(self) -> DraftSession:
        """Start drafting along one sequence, see `Drafter.new_session`."""
        return DFlashSession(self)

    def serving_config(self) -> dict[str, Any]:
        """Return `config.json`; `dtype` is that of serving, the writer knows that of the file."""
        return serving.serving_config(self.config, self.spec)

    @classmethod
    def config_from_serving(cls, config: dict[str, Any]) -> DFlashConfig:
        """Rebuild the settings, see `Drafter.config_from_serving`."""
        return serving.config_from_serving(config)

    def saved_tensors(self) -> dict[str, Tensor]:
        """Return the trained weights, and head and maps where the vocabulary is reduced.

        The embedding is left out: the engine shares the verifier's.
        """
        tensors = {name: p.detach() for name, p in self.named_parameters()}
        if not self.vocabulary.is_full:
            tensors["lm_head.weight"] = self.lm_head
            tensors["d2t"], tensors["t2d"] = self.vocabulary.d2t, self.vocabulary.t2d
        return tensors

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

    def _layout(self, row: HostRow, anchors: Int[Tensor, "anchor"]) -> BlockLayout:
        """Return the blocks, filled up; on a CPU the row ends where nothing is visible any more."""
        device = self.lm_head.device
        size, length = self.config.block_size, len(row.document_ids)
        filled = fill_anchors(
            anchors, self.config.max_anchors, size, on_accelerator=device.type != "cpu"
        )
        if device.type == "cpu":
            needed = int(anchors[-1]) + 1 if len(anchors) else 1
            length = min(length, -(-needed // _CONTEXT_MULTIPLE) * _CONTEXT_MULTIPLE)
        return BlockLayout(
            filled, len(anchors), row.document_ids[:length], row.position_ids[:length], size
        )

    def _noisy(self, states: Tensor, step: StepContext) -> Tensor:
        width = self.config.input_noise
        if not self.training or width == 0:
            return states
        seed = step.generator("noise").initial_seed()
        generator = torch.Generator(states.device).manual_seed(seed)
        return states + torch.empty_like(states).uniform_(-width, width, generator=generator)

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
            nn.functional.embedding(input_ids[here.anchors], self.embed_tokens),
            self.mask_embedding,
            here.slot_positions(),
            self.encode(states, here.position_ids),
            attention,
            keep.to(device, non_blocking=True),
        )

    @property
    def mask_embedding(self) -> Float[Tensor, "hidden"]:
        """Embedding of every slot but the first."""
        return self.embed_tokens[self.config.mask_token_id or 0]

    def _loss(
        self, hidden: Tensor, batch: PackedBatch, teacher: VerifierHead, plan: SlotPlan
    ) -> ChunkedLoss:
        weights = self.config.loss.active()
        targets = plan.labels.to(hidden.device, non_blocking=True)
        opinion, labels = None, targets
        against_verifier = "ce" in weights and self.config.ce_labels is CeLabels.verifier
        if needs_verifier(weights) or against_verifier:
            opinion = self._teacher(batch, teacher, plan)
        if against_verifier and opinion is not None:
            states = opinion.states.to(opinion.head.dtype)
            labels = top_tokens(states, opinion.head)[plan.index.to(hidden.device)]
        return chunked_head_loss(
            hidden, self.lm_head, weights, labels=labels, targets=targets, teacher=opinion
        )

    @torch.no_grad()
    def _teacher(self, batch: PackedBatch, teacher: VerifierHead, plan: SlotPlan) -> Teacher:
        states = teacher.normed(batch.last[plan.bases.to(batch.last.device)])
        # Over a reduced vocabulary the draft's frozen rows are the verifier's own.
        head = teacher.lm_head if self.vocabulary.is_full else self.lm_head
        return Teacher(states, head, plan.index, self.spec.logit_softcap)

    def _output(self, loss: ChunkedLoss, plan: SlotPlan) -> Output:
        device, config = loss.loss.device, self.config
        flat = plan.flat.to(device, non_blocking=True)
        supervised = plan.supervised.to(device, non_blocking=True)
        labelled = (plan.labels >= 0).to(device, non_blocking=True)
        if config.ce_labels is CeLabels.verifier:
            labelled = torch.ones_like(labelled)
        size = config.block_size
        if config.position_weights is PositionWeights.dpace:
            ce = _on_grid(loss.terms["ce"], flat, supervised)
            trained = _on_grid(labelled, flat, supervised)
            weights = dpace_weights(ce, trained, config.dpace_alpha).flatten()[flat]
        else:
            gamma = config.loss_decay_gamma or 1.0
            weights = slot_weights(config.position_weights, size, gamma).to(device)[flat % size]
        right = _on_grid(loss.correct, flat, supervised)
        sums, counts = training_metrics(plan, supervised, right, loss.terms, labelled)
        total = (weights * loss.loss).sum()
        return Output(total, divisor(weights, config.normalization), sums, counts)


def _on_grid(values: Tensor, flat: Tensor, grid: Tensor) -> Tensor:
    """Put the values of slots at their places in `anchor block`, 0 elsewhere."""
    return values.new_zeros(grid.numel()).index_put_((flat,), values).view(grid.shape)


def _sizes(config: DFlashConfig, spec: VerifierSpec) -> LayerSizes:
    """Return the widths of a draft layer; a resolved config has them all."""
    return LayerSizes(
        spec.hidden_size,
        config.intermediate_size or spec.intermediate_size,
        config.num_attention_heads or spec.num_attention_heads,
        config.num_key_value_heads or spec.num_key_value_heads,
        config.head_dim or spec.head_dim,
        spec.rms_norm_eps,
    )

"""The Eagle-3 drafter: training-time test, batched drafting, and what its checkpoints hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from speculators.algorithms.anchors import anchors_with_predecessor, fill_anchors
from speculators.algorithms.base import DraftSession, Output, StepContext
from speculators.algorithms.conventions import Conventions
from speculators.algorithms.cost import StepCost, Workload
from speculators.algorithms.eagle3 import serving
from speculators.algorithms.eagle3.config import Eagle3Config, TttTokens
from speculators.algorithms.eagle3.cost import eagle3_cost
from speculators.algorithms.eagle3.fused_conventions import fused_conventions
from speculators.algorithms.eagle3.metrics import step_accuracies
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.algorithms.eagle3.resolve import fill_fused
from speculators.algorithms.eagle3.session import Eagle3Session
from speculators.algorithms.eagle3.start import copy_layers
from speculators.algorithms.metrics import training_metrics
from speculators.algorithms.noise import noisy
from speculators.algorithms.objective import labelled, on_grid, skips_unreachable, slot_losses
from speculators.algorithms.resolving import refuse
from speculators.algorithms.served import ServedDrafter
from speculators.algorithms.slots import HostRow, SlotPlan, plan_slots
from speculators.attention.backend import BlockAttention, prepare_attention
from speculators.attention.layout import BlockLayout
from speculators.config.schema import AttentionBackend
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.modules.chunked_head import ChunkedLoss
from speculators.modules.decoder import LayerSizes
from speculators.modules.transfer import send
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec

_ROW_MULTIPLE = 64


class Eagle3Drafter(Eagle3Network, ServedDrafter[Eagle3Config]):
    """Drafts one token at a time from the verifier's states, then from its own output.

    Args:
        config: resolved settings.
        spec: the verifier.
        vocabulary: tokens that can be drafted.
        embed_tokens: the verifier's embedding, shared.
        lm_head: the verifier's head.
        attention: backend.
    """

    speculators_model_type: ClassVar[str] = "eagle3"
    contract: ClassVar[Any] = serving

    def __init__(
        self,
        config: Eagle3Config,
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
        cls, config: Eagle3Config, spec: VerifierSpec, unused_token_ids: list[int]
    ) -> Eagle3Config:
        """Fill in what depends on the verifier, see `Drafter.resolve`."""
        return refuse(fill_fused(config, spec), spec)

    def copied_layers(self) -> list[int]:
        """Return the verifier's last layers, whose output the head expects."""
        return list(range(self.spec.num_layers - self.config.num_layers, self.spec.num_layers))

    def start_from_verifier(
        self, layers: Sequence[Mapping[str, Tensor]], norm_weight: Float[Tensor, "hidden"]
    ) -> None:
        """Copy the verifier's layers, see `Drafter.start_from_verifier`."""
        copy_layers(self, layers, norm_weight)

    @property
    def num_draft_tokens(self) -> int:
        """Tokens of one chain."""
        return self.config.num_draft_tokens

    def set_num_draft_tokens(self, count: int) -> None:
        """Draft another number of tokens, see `Drafter.set_num_draft_tokens`."""
        self.config = replace(self.config, num_draft_tokens=count)

    @property
    def draft_passes(self) -> int:
        """Every token of a chain is a pass of its own."""
        return self.num_draft_tokens

    def compute_loss(self, batch: PackedBatch, teacher: VerifierHead, step: StepContext) -> Output:
        """Train chains from every possible start of one packed row, see `Drafter.compute_loss`.

        Every step is divided by the number of chains, so rows and ranks add up exactly; where all
        chains have all their steps this is the mean over each step (specification, section 6).
        """
        row = HostRow.of(batch)
        starts = anchors_with_predecessor(row.loss_mask, row.document_ids).nonzero().flatten()
        layout = self._layout(row, starts)
        config = self.config
        plan = plan_slots(
            row,
            replace(layout, block_size=config.ttt_steps + 1),
            self.draft_ids,
            skip_unreachable=skips_unreachable(config),
            chained=True,
        )
        states = noisy(batch.aux, config.input_noise if self.training else 0.0, step)
        hidden = self._chains(states, batch, layout, config.ttt_steps, config.ttt_tokens)
        slots = send(plan.flat, hidden.device)
        steps = slots % (config.ttt_steps + 1) - 1
        chosen = hidden.flatten(0, 1)[slots // (config.ttt_steps + 1) * config.ttt_steps + steps]
        head = self.lm_head.weight
        loss = slot_losses(
            chosen, head, plan, batch, teacher, config, rows=self.verifier_rows(teacher)
        )
        return self._output(loss, plan, steps)

    def conventions(self) -> Conventions:
        """Return what this drafter computes with, see `Drafter.conventions`."""
        config = self.config
        more = {"fc_norm": config.fc_norm, "norm_output": config.norm_output}
        return fused_conventions(self, config, self.num_draft_tokens, switches=more)

    def step_cost(self, work: Workload) -> StepCost:
        """Count from sizes, see `Drafter.step_cost`."""
        sizes = LayerSizes.of(self.config, self.spec)
        return eagle3_cost(self.config, sizes, len(self.vocabulary), work)

    def start_candidates(self, batch: PackedBatch) -> Bool[Tensor, "sequence"]:
        """Mark response tokens whose predecessor has a state, see `Drafter.start_candidates`."""
        return anchors_with_predecessor(batch.loss_mask, batch.document_ids)

    @torch.no_grad()
    def draft(self, batch: PackedBatch, starts: Int[Tensor, "start"]) -> Int[Tensor, "start draft"]:
        """Draft a chain after each of `starts`, see `Drafter.draft`."""
        if not len(starts):
            return starts.new_empty((0, self.num_draft_tokens))
        layout = self._layout(HostRow.of(batch), starts.cpu())
        hidden = self._chains(batch.aux, batch, layout, self.num_draft_tokens, TttTokens.own)
        hidden = hidden[: len(starts)]
        return self.most_likely(hidden.flatten(0, 1)).view(hidden.shape[:2])

    def new_session(self) -> DraftSession:
        """Start drafting along one sequence, see `Drafter.new_session`."""
        return Eagle3Session(self)

    def _layout(self, row: HostRow, starts: Int[Tensor, "start"]) -> BlockLayout:
        """Return blocks of one slot, one per start; on a CPU the row ends with the last of them."""
        device, length = self.fc.weight.device, len(row.document_ids)
        accelerated = device.type != "cpu"
        filled = fill_anchors(starts, length, 1, on_accelerator=accelerated)
        if not accelerated:
            needed = int(starts[-1]) + 1 if len(starts) else 1
            length = min(length, -(-needed // _ROW_MULTIPLE) * _ROW_MULTIPLE)
        return BlockLayout(
            filled,
            len(starts),
            row.document_ids[:length],
            row.position_ids[:length],
            1,
            most_blocks=length,
        )

    def _chains(
        self,
        states: Float[Tensor, "sequence aux_layer hidden"],
        batch: PackedBatch,
        layout: BlockLayout,
        num_steps: int,
        tokens: TttTokens,
    ) -> Float[Tensor, "start step hidden"]:
        """Return the input of the head at every step of a chain from each start."""
        device, length = states.device, layout.sequence_length
        base = replace(layout, anchors=(layout.anchors - 1).clamp(min=0))
        rows = send(base.anchors, device)
        positions = send(layout.position_ids, device)
        last = len(batch.input_ids) - 1
        after = torch.arange(1, length + 1, device=device).clamp(max=last)
        embeddings = self.embed(batch.input_ids[after])
        deep = self.config.num_layers > 1
        every = self._attention(_every_row(base), device)(0) if deep else None
        encoded = self.encode(embeddings, states[:length], positions, every)

        def following(step: int, normed: Tensor) -> Tensor:
            if tokens is TttTokens.own:
                return self.embed(self.most_likely(normed.detach()))
            return self.embed(batch.input_ids[(rows + 2 + step).clamp(max=last)])

        outputs = self.unroll(
            encoded,
            embeddings[rows],
            positions[rows],
            rows,
            num_steps,
            following,
            self._attention(base, device),
            recompute=self.config.activation_checkpointing,
        )
        return torch.stack(outputs, 1)

    def _attention(
        self, layout: BlockLayout, device: torch.device
    ) -> Callable[[int], BlockAttention]:
        """Return attention of a chain's step: it asks for the last of its `step + 1` slots."""
        gradients = torch.is_grad_enabled()

        def at(step: int) -> BlockAttention:
            blocks = replace(layout, block_size=step + 1, first_query=step)
            return prepare_attention(blocks, self.rule, self.attention, device, gradients=gradients)

        return at

    def _output(self, loss: ChunkedLoss, plan: SlotPlan, steps: Int[Tensor, "slot"]) -> Output:
        device = loss.loss.device
        flat = send(plan.flat, device)
        supervised = send(plan.supervised, device)
        right = on_grid(loss.correct, flat, supervised)
        known = labelled(plan, self.config, device)
        sums, counts = training_metrics(plan, supervised, right, loss.terms, known)
        step_accuracies(sums, counts, self.config.ttt_steps)
        total = (self.config.ttt_decay**steps * loss.loss).sum()
        return Output(total, (steps == 0).sum().to(total.dtype), sums, counts)


def _every_row(layout: BlockLayout) -> BlockLayout:
    length = layout.sequence_length
    return replace(layout, anchors=torch.arange(length), num_valid=length)

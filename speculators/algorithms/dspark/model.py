"""The DSpark drafter: DFlash's pass, then a step from token to token through the Markov head."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from speculators.algorithms.base import Output, Proposal, TokenRows
from speculators.algorithms.cost import StepCost, Workload
from speculators.algorithms.dflash.cost import dflash_cost
from speculators.algorithms.dflash.model import DFlashDrafter
from speculators.algorithms.dspark import serving
from speculators.algorithms.dspark.config import DSparkConfig
from speculators.algorithms.dspark.heads import ConfidenceHead, MarkovHead
from speculators.algorithms.objective import slot_losses
from speculators.algorithms.slots import SlotPlan
from speculators.attention.layout import BlockLayout
from speculators.config.schema import AttentionBackend
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.modules.decoder import LayerSizes
from speculators.modules.partition import top_tokens
from speculators.modules.transfer import send
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec


class DSparkDrafter(DFlashDrafter):
    """A block in one pass; each token then biases the logits of the next.

    Args:
        config: resolved settings.
        spec: the verifier.
        vocabulary: tokens that can be drafted.
        embed_tokens: the verifier's embedding, shared.
        lm_head: the verifier's head.
        attention: backend.
    """

    speculators_model_type: ClassVar[str] = "dspark"
    contract: ClassVar[Any] = serving
    config: DSparkConfig

    def __init__(
        self,
        config: DSparkConfig,
        spec: VerifierSpec,
        vocabulary: DraftVocabulary,
        *,
        embed_tokens: Float[Tensor, "vocab hidden"],
        lm_head: Float[Tensor, "vocab hidden"],
        attention: AttentionBackend,
    ) -> None:
        super().__init__(
            config,
            spec,
            vocabulary,
            embed_tokens=embed_tokens,
            lm_head=lm_head,
            attention=attention,
        )
        self.markov_head = MarkovHead(spec.vocab_size, len(vocabulary), config.markov_rank)
        width = spec.hidden_size + config.markov_rank
        self.confidence_head = ConfidenceHead(width) if config.confidence_weight > 0 else None

    def step_cost(self, work: Workload) -> StepCost:
        """Count from sizes, see `Drafter.step_cost`; the heads make the draft head wider."""
        config, sizes = self.config, LayerSizes.of(self.config, self.spec)
        terms = config.loss.active()
        if self.confidence_head is not None:
            terms = {"tv": 0.0, **terms}
        width = sizes.hidden_size + config.markov_rank
        return dflash_cost(
            config, sizes, len(self.vocabulary), terms, work, head_width=width, trained_head=True
        )

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights: the block's as DFlash does, heads that do next to nothing."""
        super().initialize(generator)
        self.markov_head.initialize(generator)
        if self.confidence_head is not None:
            self.confidence_head.initialize()

    def train_slots(
        self,
        hidden: Float[Tensor, "slot hidden"],
        batch: PackedBatch,
        teacher: VerifierHead,
        plan: SlotPlan,
        layout: BlockLayout,
    ) -> Output:
        """Compare the slots with data and verifier, see `DFlashDrafter.train_slots`.

        The bias is an inner product too, so state and token before go through one wider head. The
        confidence head learns the share 1 - tv of drafts that sampling would accept.
        """
        config, size = self.config, self.config.block_size
        before = layout.anchors[plan.flat // size] + plan.flat % size - 1
        token = batch.input_ids[send(before, batch.input_ids.device)]
        wide = torch.cat([hidden, self.markov_head.embed(token).to(hidden.dtype)], -1)
        weights = config.loss.active()
        if self.confidence_head is not None:
            weights = {"tv": 0.0, **weights}
        loss = slot_losses(
            wide,
            self._wide_head(),
            plan,
            batch,
            teacher,
            config,
            rows=self.lm_head.weight,
            weights=weights,
        )
        output = self.weighted(loss, plan)
        if self.confidence_head is None:
            return output
        flat = send(plan.flat, hidden.device)
        of_confidence = nn.functional.binary_cross_entropy_with_logits(
            self.confidence_head(wide), (1 - loss.terms["tv"]).clamp(0, 1), reduction="none"
        )
        fixed = self.slot_weights(hidden.device)[flat % size]
        total = output.loss_sum + config.confidence_weight * (fixed * of_confidence).sum()
        sums = output.sums | {"loss_confidence": of_confidence.detach().sum()}
        counts = output.counts | {"loss_confidence": torch.full_like(sums["coverage"], len(flat))}
        return Output(total, output.divisor, sums, counts)

    @torch.no_grad()
    def choose(
        self, hidden: Float[Tensor, "start draft hidden"], newest: Int[Tensor, "start"]
    ) -> Int[Tensor, "start draft"]:
        """Return the tokens drafted greedily, one slot after the other."""
        head, drafted = self._wide_head(), [newest]
        for slot in hidden.unbind(1):
            token = self.markov_head.embed(drafted[-1]).to(head.dtype)
            wide = torch.cat([slot.to(head.dtype), token], -1)
            drafted.append(self.token_ids[top_tokens(wide, head)])
        return torch.stack(drafted[1:], 1)

    def propose(
        self,
        hidden: Float[Tensor, "draft hidden"],
        newest: Int[Tensor, ""],
        temperature: float,
        generator: torch.Generator | None,
    ) -> Proposal:
        """Draft one block, one slot after the other, see `DraftSession.propose`."""
        parts: list[Proposal] = []
        token = newest[None]
        for logits in self.logits(hidden):
            bias = self.markov_head.embed(token) @ self.markov_head.markov_w2.weight.T
            parts.append(self.draw(logits + bias.float(), temperature, generator))
            token = parts[-1].tokens
        probabilities = [p.probabilities for p in parts if p.probabilities is not None]
        tokens = torch.cat([part.tokens for part in parts])
        return Proposal(tokens, torch.cat(probabilities) if probabilities else None)

    def token_rows(self) -> dict[str, TokenRows]:
        """Name the Markov head's two tables, see `Drafter.token_rows`."""
        names = {"markov_w1": TokenRows.vocab, "markov_w2": TokenRows.draft}
        return {f"markov_head.{name}.weight": rows for name, rows in names.items()}

    def _wide_head(self) -> Float[Tensor, "draft_vocab width"]:
        """Return the head and the Markov head side by side."""
        rows = self.lm_head.weight
        return torch.cat([rows, self.markov_head.markov_w2.weight.to(rows.dtype)], 1)

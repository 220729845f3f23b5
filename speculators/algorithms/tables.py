"""Embedding, head and draft vocabulary: how every drafter gets from states to tokens."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from speculators.algorithms.base import Proposal, TokenRows
from speculators.algorithms.resolving import with_own_rope
from speculators.config.schema import AttentionBackend
from speculators.data.vocabulary import DraftVocabulary
from speculators.modules.partition import top_tokens
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec


class DraftHead(nn.Module):
    """Rows of the verifier's head, in the order of the draft vocabulary.

    Args:
        rows: the rows; shared when frozen, copied when trained.
        trained: whether they move.
    """

    weight: Tensor

    def __init__(self, rows: Float[Tensor, "draft_vocab hidden"], *, trained: bool = False) -> None:
        super().__init__()
        if trained:
            self.weight = nn.Parameter(rows.clone())
        else:
            self.register_buffer("weight", rows, persistent=False)


class DraftTables(nn.Module):
    """Mixed into drafters: the verifier's tables, and the tokens that follow from states.

    Embedding and head are frozen (unless the head is trained), in the number format they come in;
    give them in the format of the arithmetic (fp32 on a CPU, bf16 on a GPU) to save a conversion
    per step.

    Attributes:
        vocabulary: tokens that can be drafted.
        embed_tokens: the verifier's embedding, shared.
        lm_head: the draft head.
        token_ids: verifier token of each row of the head.
        draft_ids: on the host, draft id of each verifier token, -1 where it cannot be drafted;
            None when all can.
    """

    vocabulary: DraftVocabulary
    embed_tokens: Tensor
    lm_head: DraftHead
    token_ids: Tensor
    draft_ids: Tensor | None

    @classmethod
    def build(
        cls,
        config: Any,
        spec: VerifierSpec,
        vocabulary: DraftVocabulary,
        *,
        embed_tokens: Float[Tensor, "vocab hidden"],
        lm_head: Float[Tensor, "vocab hidden"],
        generator: torch.Generator,
        attention: AttentionBackend = AttentionBackend.auto,
    ) -> Any:
        """Build an untrained drafter, see `Drafter.build`: the constructor, then `initialize`."""
        drafter: Any = cls(
            config,  # pyright: ignore[reportCallIssue]
            with_own_rope(config, spec),
            vocabulary,
            embed_tokens=embed_tokens,
            lm_head=lm_head,
            attention=attention,
        )
        drafter.initialize(generator)
        return drafter

    def add_tables(
        self,
        vocabulary: DraftVocabulary,
        embed_tokens: Float[Tensor, "vocab hidden"],
        lm_head: Float[Tensor, "vocab hidden"],
        *,
        train_head: bool = False,
    ) -> None:
        """Register the tables; `lm_head` is the verifier's whole head."""
        rows = lm_head if vocabulary.is_full else lm_head[vocabulary.ids.to(lm_head.device)]
        self.vocabulary = vocabulary
        self.lm_head = DraftHead(rows, trained=train_head)
        self.register_buffer("embed_tokens", embed_tokens, persistent=False)
        self.register_buffer("token_ids", vocabulary.ids, persistent=False)
        self.draft_ids = None if vocabulary.is_full else vocabulary.draft_ids()

    def embed(self, token_ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch hidden"]:
        """Return the verifier's embedding of verifier tokens."""
        return nn.functional.embedding(token_ids, self.embed_tokens)

    @torch.no_grad()
    def most_likely(self, hidden: Float[Tensor, "row hidden"]) -> Int[Tensor, "row"]:
        """Return the verifier token each row would draft."""
        head = self.lm_head.weight
        return self.token_ids[top_tokens(hidden.to(head.dtype), head)]

    def draw(
        self,
        logits: Float[Tensor, "draft draft_vocab"],
        temperature: float,
        generator: torch.Generator | None,
    ) -> Proposal:
        """Return the most likely tokens, or at temperature > 0 draw them and say from what."""
        if temperature == 0:
            return Proposal(self.token_ids[logits.argmax(-1)])
        q = (logits / temperature).softmax(-1)
        at = q if generator is None else q.to(generator.device)
        drawn = torch.multinomial(at, 1, generator=generator)[:, 0].to(q.device)
        full = q.new_zeros(len(q), self.vocabulary.vocab_size)
        full[:, self.token_ids] = q
        return Proposal(self.token_ids[drawn], full)

    def logits(self, hidden: Float[Tensor, "row hidden"]) -> Float[Tensor, "row draft_vocab"]:
        """Return draft logits in fp32. Memory grows with rows: for a few at a time."""
        head = self.lm_head.weight
        return (hidden.to(head.dtype) @ head.T).float()

    def verifier_rows(self, teacher: VerifierHead) -> Float[Tensor, "draft_vocab hidden"]:
        """Return the verifier's own rows: the draft head itself unless it is trained."""
        if not self.lm_head.weight.requires_grad:
            return self.lm_head.weight
        return teacher.lm_head if self.vocabulary.is_full else teacher.lm_head[self.token_ids]

    def token_rows(self) -> dict[str, TokenRows]:
        """Name the draft head if it is trained, see `Drafter.token_rows`."""
        return {"lm_head.weight": TokenRows.draft} if self.lm_head.weight.requires_grad else {}

    def saved_tables(self) -> dict[str, Tensor]:
        """Return head and maps where the vocabulary is reduced.

        The embedding is left out: the engine shares the verifier's.
        """
        if self.vocabulary.is_full:
            return {}
        return {
            "lm_head.weight": self.lm_head.weight.detach(),
            "d2t": self.vocabulary.d2t,
            "t2d": self.vocabulary.t2d,
        }

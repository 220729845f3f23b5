"""A verifier that is a small recurrence over the prefix, and drafters of any quality for it.

Every token is one step of the same arithmetic, whatever the chunking, so equal prefixes give equal
states bit for bit. Layer 0 of `aux` holds the token itself: a session can check what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from speculators.algorithms.base import Drafter, DraftSession, Output, Proposal, StepContext
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.config.schema import AttentionBackend
from speculators.data.types import PackedBatch, Turn
from speculators.data.vocabulary import DraftVocabulary
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec

HIDDEN = 12


def tiny_spec(vocab_size: int = 23, max_position_embeddings: int = 512) -> VerifierSpec:
    return VerifierSpec(
        name_or_path="fake",
        folder="fake",
        revision=None,
        architecture="Fake",
        model_type="fake",
        num_layers=1,
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        vocab_size=vocab_size,
        num_tokens=vocab_size,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=HIDDEN,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        rope_parameters={},
        max_position_embeddings=max_position_embeddings,
        dtype="float32",
        tie_word_embeddings=False,
        bos_token_id=None,
        pad_token_id=None,
        eos_token_ids=(0,),
    )


@dataclass
class FakeStep:
    logits: Tensor
    aux: Tensor


@dataclass
class FakeVerifier:
    """h_p = tanh(W h_{p-1} + E[x_p]); logits = head(h_p); the cache is the list of h."""

    spec: VerifierSpec = field(default_factory=tiny_spec)
    seed: int = 0
    sharpness: float = 3.0
    calls: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        size = self.spec.vocab_size
        self.device = torch.device("cpu")
        self.mix = torch.randn(HIDDEN, HIDDEN, generator=generator) * 1.5 / math.sqrt(HIDDEN)
        self.embedding = torch.randn(size, HIDDEN, generator=generator)
        head = torch.randn(size, HIDDEN, generator=generator) * self.sharpness / math.sqrt(HIDDEN)
        self.head = VerifierHead(self.spec, torch.ones(HIDDEN), head)

    def new_cache(self) -> list[Tensor]:
        return []

    def crop(self, cache: list[Tensor], length: int) -> None:
        assert 0 < length <= len(cache)
        del cache[length:]

    def forward(
        self,
        input_ids: Tensor,
        cache: Any,
        layer_ids: Sequence[int],
        *,
        num_logits: int | None = None,
    ) -> FakeStep:
        self.calls.append(len(input_ids))
        assert int(input_ids.max()) < self.spec.vocab_size
        new = []
        for token in input_ids.tolist():
            before = cache[-1] if cache else torch.zeros(HIDDEN)
            cache.append(torch.tanh(self.mix @ before + self.embedding[token]))
            new.append(cache[-1])
        logits = self.head.logits(torch.stack(new[-(num_logits or 0) :]))
        layers = [input_ids[:, None].float().expand(-1, HIDDEN), torch.stack(new)]
        aux = [layers[layer] for layer in layer_ids]
        nothing = logits.new_empty(len(new), 0, HIDDEN)
        return FakeStep(logits, torch.stack(aux, 1) if aux else nothing)

    def states(self, ids: Sequence[int]) -> Tensor:
        step = self.forward(torch.tensor(ids), self.new_cache(), (1,))
        self.calls.pop()
        return step.aux[:, 0]

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        cache = self.new_cache()
        ids, out = torch.tensor(prompt), []
        for _ in range(count):
            out.append(int(self.forward(ids, cache, ()).logits[-1].argmax()))
            self.calls.pop()
            ids = torch.tensor(out[-1:])
        return out


Guess = Callable[[Sequence[int]], list[int]]


def noisy(verifier: FakeVerifier, size: int, error_rate: float, seed: int = 0) -> Guess:
    """Draft the verifier's own greedy tokens, each spoiled with a chance drawn per prefix."""

    @cache
    def draft(prefix: tuple[int, ...]) -> list[int]:
        generator = torch.Generator().manual_seed(seed + hash(prefix) % 2**40)
        spoil = torch.rand(size, generator=generator) < error_rate
        other = torch.randint(1, verifier.spec.vocab_size, (size,), generator=generator)
        tokens = torch.tensor(verifier.greedy(prefix, size))
        return ((tokens + spoil * other) % verifier.spec.vocab_size).tolist()

    return lambda prefix: draft(tuple(prefix))


class FakeSession(DraftSession):
    """Rebuilds the prefix from states and tokens, checking that both are new and in order."""

    def __init__(self, drafter: FakeDrafter) -> None:
        self.drafter = drafter
        self.prefix: list[int] = []
        self.cache: list[Tensor] = []

    def propose(
        self,
        states: Tensor,
        tokens: Tensor,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Proposal:
        assert len(states) == len(tokens) > 0
        known = states[:, 0, 0].long().tolist()
        assert known[1:] == tokens[:-1].tolist()
        assert not self.cache or known[0] == self.prefix[len(self.cache)]
        step = self.drafter.verifier.forward(torch.tensor(known), self.cache, (1,))
        self.drafter.verifier.calls.pop()
        torch.testing.assert_close(step.aux[:, 0], states[:, 1], rtol=0, atol=0)
        self.prefix = [*self.prefix[: len(self.cache) - len(known)], *known, int(tokens[-1])]
        guess = self.drafter.guess(self.prefix)
        if temperature == 0:
            return Proposal(torch.tensor(guess))
        size = self.drafter.spec.vocab_size
        weights = torch.full((len(guess), size), 0.5 / size)
        weights[torch.arange(len(guess)), torch.tensor(guess)] += 0.5
        drawn = torch.multinomial(weights, 1, generator=generator).flatten()
        return Proposal(drawn, weights)


class FakeDrafter(Drafter[DFlashConfig]):
    """Drafts what a function of the prefix says."""

    speculators_model_type = "fake"

    def __init__(self, verifier: FakeVerifier, guess: Guess, size: int) -> None:
        super().__init__()
        self.verifier, self.guess, self.size = verifier, guess, size
        self.spec = verifier.spec
        self.vocabulary = DraftVocabulary.full(self.spec.vocab_size)
        self.config = DFlashConfig(num_layers=1, target_layer_ids=[0, 1], block_size=size + 1)
        self.dropout = torch.nn.Dropout(0.5)

    @property
    def num_draft_tokens(self) -> int:
        return self.size

    def new_session(self) -> DraftSession:
        return FakeSession(self)

    def start_candidates(self, batch: PackedBatch) -> Tensor:
        same = batch.document_ids[1:] == batch.document_ids[:-1]
        inner = batch.loss_mask[:-1] & batch.loss_mask[1:] & same
        return torch.cat([inner, inner.new_zeros(1)])

    def draft(self, batch: PackedBatch, starts: Tensor) -> Tensor:
        assert not self.training
        ids, positions = batch.input_ids.tolist(), batch.position_ids.tolist()
        return torch.tensor(
            [self.guess(ids[start - positions[start] : start + 1]) for start in starts.tolist()]
        )

    @classmethod
    def resolve(cls, config: Any, spec: Any, unused_token_ids: Any) -> Any:
        raise AssertionError

    @classmethod
    def build(
        cls,
        config: Any,
        spec: Any,
        vocabulary: Any,
        *,
        embed_tokens: Any,
        lm_head: Any,
        generator: torch.Generator,
        attention: AttentionBackend = AttentionBackend.auto,
    ) -> Any:
        raise AssertionError

    def compute_loss(self, batch: PackedBatch, teacher: VerifierHead, step: StepContext) -> Output:
        raise AssertionError

    def serving_config(self) -> dict[str, Any]:
        raise AssertionError

    @classmethod
    def config_from_serving(cls, config: dict[str, Any]) -> Any:
        raise AssertionError

    def saved_tensors(self) -> dict[str, Tensor]:
        raise AssertionError


class FakeTokenizer:
    """Words `t7` are token 7; a user turn is closed by token 1."""

    end_of_turn_ids: tuple[int, ...] = (0,)

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        ids = []
        for turn in turns:
            ids += [int(word[1:]) for word in turn.content.split()] + [1]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(self.token_text, ids))

    def token_text(self, token_id: int) -> str:
        return f"t{token_id}"


def packed(
    verifier: FakeVerifier, rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int = 0
) -> PackedBatch:
    """Pack (prompt, answer) documents."""
    return packed_masked(
        verifier,
        [([*p, *a], [False] * len(p) + [True] * len(a)) for p, a in rows],
        pad,
    )


def packed_masked(
    verifier: FakeVerifier, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], pad: int = 0
) -> PackedBatch:
    """Pack (tokens, loss mask) documents with their states."""
    ids, mask, documents, positions, last = [], [], [], [], []
    for number, (tokens, flags) in enumerate(rows):
        ids += tokens
        mask += flags
        documents += [number] * len(tokens)
        positions += range(len(tokens))
        last.append(verifier.states(tokens))
    total = len(ids) + pad
    states = torch.cat([*last, torch.zeros(pad, HIDDEN)])
    return PackedBatch(
        torch.tensor([*ids, *[0] * pad]),
        torch.tensor([*mask, *[False] * pad]),
        torch.tensor([*documents, *[-1] * pad]),
        torch.tensor([*positions, *[0] * pad]),
        torch.zeros(total, 2, HIDDEN),
        states,
    )

"""Lossless speculative decoding of one prompt, with caches on both sides.

Draft, verify, accept (DFlash specification, section 12). Plain decoding is the same loop with
nothing drafted, so that a comparison measures drafting and not two implementations.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from speculators.algorithms.base import Drafter, DraftSession, Proposal
from speculators.config.schema import Sampling
from speculators.evaluation.inference import inference
from speculators.evaluation.rules import Verdict, accept_greedy, accept_one_hot, accept_ratio
from speculators.evaluation.verifier import CachedVerifier


@dataclass(frozen=True)
class DraftRecord:
    """One draft and what became of it; one verify call each.

    Attributes:
        anchor_index: position of the newest token when drafting, counted from the prompt's start.
        drafted: tokens proposed for the positions after it.
        num_accepted: how many of them stood, including any past the end of the answer.
        bonus: the verifier's own token after them.
    """

    anchor_index: int
    drafted: tuple[int, ...]
    num_accepted: int
    bonus: int


@dataclass(frozen=True)
class Decoded:
    """An answer, and what it cost.

    Attributes:
        tokens: the answer, stop token included, trimmed at it and at the length asked for.
        drafts: every draft in order; empty for plain decoding.
        verifier_calls: forward passes of the verifier, prefill included.
        seconds: wall clock of everything.
        prefill_seconds: the pass over the prompt.
        draft_seconds: time in the drafter.
        verify_seconds: time in the verifier after prefill.
        stopped: whether a stop token ended the answer, rather than the length.
    """

    tokens: tuple[int, ...]
    drafts: tuple[DraftRecord, ...]
    verifier_calls: int
    seconds: float
    prefill_seconds: float
    draft_seconds: float
    verify_seconds: float
    stopped: bool

    @property
    def accepted(self) -> list[int]:
        """Accepted tokens of every draft."""
        return [record.num_accepted for record in self.drafts]


def decode(
    verifier: CachedVerifier,
    prompt_ids: Sequence[int],
    *,
    drafter: Drafter[Any] | None,
    layer_ids: Sequence[int],
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    temperature: float = 0.0,
    sampling: Sampling = Sampling.one_hot,
    generator: torch.Generator | None = None,
) -> Decoded:
    """Continue `prompt_ids`; the drafter changes the speed, never the distribution of the answer.

    Counts as vLLM does: a draft is a verify call with drafted tokens, so the prefill is none;
    accepted tokens behind a stop token or beyond `max_new_tokens` count although the returned
    answer is trimmed.

    Args:
        verifier: the model whose output must not change.
        prompt_ids: at least one token, special tokens included.
        drafter: None decodes plainly.
        layer_ids: verifier layers whose states the drafter reads.
        max_new_tokens: longest answer.
        stop_ids: tokens that end the answer; they belong to it.
        temperature: 0 is greedy.
        sampling: acceptance rule at temperature > 0.
        generator: CPU generator for temperature > 0.

    Raises:
        ValueError: empty prompt, or no room for a token.
    """
    if not prompt_ids or max_new_tokens < 1:
        raise ValueError("decoding needs a prompt of at least one token and max_new_tokens >= 1")
    loop = _Loop(verifier, tuple(layer_ids), temperature, sampling, generator)
    with inference(drafter):
        session = None if drafter is None else drafter.new_session()
        return loop.run(prompt_ids, session, max_new_tokens, frozenset(stop_ids))


@dataclass
class _Loop:
    """Settings and clocks of one decoding."""

    verifier: CachedVerifier
    layer_ids: tuple[int, ...]
    temperature: float
    sampling: Sampling
    generator: torch.Generator | None
    seconds: dict[str, float] = field(
        default_factory=lambda: {"prefill": 0.0, "draft": 0.0, "verify": 0.0}
    )

    def run(
        self,
        prompt_ids: Sequence[int],
        session: DraftSession | None,
        max_new_tokens: int,
        stop_ids: frozenset[int],
    ) -> Decoded:
        start = time.perf_counter()
        device = self.verifier.device
        layer_ids = self.layer_ids if session is not None else ()
        cache = self.verifier.new_cache()
        length = len(prompt_ids)
        prompt = torch.tensor(prompt_ids, dtype=torch.int64, device=device)
        with self._clock("prefill"):
            step = self.verifier.forward(prompt, cache, layer_ids, num_logits=1)
            _, newest = self._judge(_NOTHING, step.logits)
        states, confirmed = step.aux, [*prompt_ids[1:], newest]
        answer, fresh, records, calls = [newest], [newest], [], 1
        while len(answer) < max_new_tokens and stop_ids.isdisjoint(fresh):
            proposal = _NOTHING
            if session is not None:
                with self._clock("draft"):
                    proposal = self._propose(session, states, confirmed)
            drafted = proposal.tokens.to(device)
            with self._clock("verify"):
                block = torch.cat([torch.tensor([newest], device=device), drafted])
                step = self.verifier.forward(block, cache, layer_ids)
                num_accepted, bonus = self._judge(proposal, step.logits)
                self.verifier.crop(cache, length + num_accepted + 1)
            calls += 1
            tokens = tuple(drafted.tolist())
            if session is not None:
                records.append(DraftRecord(length, tokens, num_accepted, bonus))
            # The bonus token's own state does not exist before the next pass.
            states = step.aux[: num_accepted + 1]
            confirmed = fresh = [*tokens[:num_accepted], bonus]
            answer += fresh
            newest = bonus
            length += num_accepted + 1
        kept = _trim(answer, max_new_tokens, stop_ids)
        return Decoded(
            tokens=kept,
            drafts=tuple(records),
            verifier_calls=calls,
            seconds=time.perf_counter() - start,
            prefill_seconds=self.seconds["prefill"],
            draft_seconds=self.seconds["draft"],
            verify_seconds=self.seconds["verify"],
            stopped=kept[-1] in stop_ids,
        )

    def _propose(self, session: DraftSession, states: Tensor, confirmed: list[int]) -> Proposal:
        drawn = self.temperature > 0 and self.sampling is Sampling.ratio
        return session.propose(
            states,
            torch.tensor(confirmed, dtype=torch.int64, device=states.device),
            temperature=self.temperature if drawn else 0.0,
            generator=self.generator,
        )

    def _judge(self, proposal: Proposal, logits: Tensor) -> Verdict:
        drafted = proposal.tokens.to(logits.device)
        if self.temperature == 0:
            return accept_greedy(drafted, logits)
        probabilities = torch.softmax(logits.float() / self.temperature, dim=-1)
        if self.sampling is Sampling.ratio and proposal.probabilities is not None:
            proposed = proposal.probabilities.to(logits.device)
            return accept_ratio(drafted, proposed, probabilities, self.generator)
        return accept_one_hot(drafted, probabilities, self.generator)

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds[name] += time.perf_counter() - start

    def _wait(self) -> None:
        """Let an accelerator finish, so that its work is counted where it was asked for."""
        if self.verifier.device.type != "cpu":
            torch.accelerator.synchronize(self.verifier.device)


_NOTHING = Proposal(torch.empty(0, dtype=torch.int64))


def _trim(answer: Sequence[int], max_new_tokens: int, stop_ids: frozenset[int]) -> tuple[int, ...]:
    """Cut after the first stop token and at the length asked for."""
    kept = tuple(answer[:max_new_tokens])
    ends = [index for index, token in enumerate(kept) if token in stop_ids]
    return kept[: ends[0] + 1] if ends else kept

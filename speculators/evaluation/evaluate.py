"""Evaluation of a drafter on prompts: acceptance, losslessness, speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from speculators.algorithms.base import Drafter, StepContext
from speculators.config.schema import EvaluationConfig
from speculators.errors import DataError
from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.comparison import find_mismatch
from speculators.evaluation.decode import Decoded, decode
from speculators.evaluation.progress import DecodingProgress
from speculators.evaluation.prompts import Prompt
from speculators.evaluation.result import (
    Cost,
    EvaluationResult,
    Example,
    ExampleDraft,
    Mismatch,
    distinct_gram_share,
)
from speculators.evaluation.slices import PromptRow, by_context_length
from speculators.evaluation.verifier import CachedVerifier, PromptTokenizer

_EXAMPLES = 4
_WARM_UP_TOKENS = 4


def evaluate(
    verifier: CachedVerifier,
    drafter: Drafter[Any],
    tokenizer: PromptTokenizer,
    prompts: Sequence[Prompt],
    config: EvaluationConfig,
    *,
    seed: int,
    progress: bool = True,
    console: Console | None = None,
) -> EvaluationResult:
    """Decode every prompt with the drafter and, with `config.compare`, without it.

    The two take turns prompt by prompt, each going first every other time, so that a machine
    that slows down or warms up favours neither. Of prompts with several turns the speculative
    answer becomes the history of the next turn, for both.

    Args:
        verifier: the model whose output must not change.
        drafter: the drafter; its training mode is restored.
        tokenizer: makes prompts and reads answers.
        prompts: what to decode.
        config: lengths, temperature, acceptance rule.
        seed: of sampling and of the confidence interval.
        progress: show a bar where there is a terminal.
        console: where to show it.

    Raises:
        DataError: no prompt, or one that leaves no room for an answer.
    """
    if not prompts:
        raise DataError("evaluation: no prompt to decode")
    run = _Run(verifier, drafter, tokenizer, config, seed)
    run.warm_up(prompts[0])
    done: list[_Answered] = []
    with DecodingProgress(len(prompts), console, enabled=progress) as bar:
        for number, prompt in enumerate(prompts):
            answered = run.answer(number, prompt)
            done.append(answered)
            tokens = sum(len(d.tokens) for d in answered.speculative)
            bar.advance(tokens, len(answered.accepted), sum(answered.accepted))
    return run.summarise(done)


@dataclass
class _Answered:
    """One prompt with its answers, turn by turn."""

    prompt: Prompt
    prompt_ids: list[list[int]] = field(default_factory=list)
    speculative: list[Decoded] = field(default_factory=list)
    plain: list[Decoded] = field(default_factory=list)
    num_unanswered: int = 0

    @property
    def accepted(self) -> list[int]:
        return [count for decoded in self.speculative for count in decoded.accepted]

    @property
    def contexts(self) -> list[tuple[int, int]]:
        """Tokens before each draft, and how many of its own were accepted."""
        drafts = [record for decoded in self.speculative for record in decoded.drafts]
        return [(record.anchor_index + 1, record.num_accepted) for record in drafts]

    @property
    def lossless(self) -> bool:
        return all(s.tokens == p.tokens for s, p in zip(self.speculative, self.plain, strict=True))

    def row(self) -> PromptRow:
        drafting, plain = _cost(self.speculative), _cost(self.plain)
        return PromptRow.of(
            *(self.prompt, self.prompt_ids[0]),
            tokens=drafting.tokens,
            seconds=drafting.seconds,
            plain_tokens=plain.tokens if self.plain else None,
            plain_seconds=plain.seconds if self.plain else None,
        )


@dataclass(frozen=True)
class _Run:
    """What stays the same over all prompts."""

    verifier: CachedVerifier
    drafter: Drafter[Any]
    tokenizer: PromptTokenizer
    config: EvaluationConfig
    seed: int

    def warm_up(self, prompt: Prompt) -> None:
        """Run both ways once, untimed: the first call of a process pays for allocations."""
        ids = self._prompt_ids(prompt, [])
        for drafter in (self.drafter, None):
            self._decode(ids, drafter, min(_WARM_UP_TOKENS, self._room(ids, prompt)), 0, 0)

    def answer(self, number: int, prompt: Prompt) -> _Answered:
        """Decode every turn of one prompt, both ways."""
        answered = _Answered(prompt)
        texts: list[str] = []
        for turn in range(len(prompt.turns)):
            ids = self._prompt_ids(prompt, texts)
            if turn and self._space(ids) < 1:
                answered.num_unanswered = len(prompt.turns) - turn
                break
            room = self._room(ids, prompt)
            ways: list[Drafter[Any] | None] = [self.drafter]
            if self.config.compare:
                ways.insert((number + turn) % 2, None)
            for way in ways:
                decoded = self._decode(ids, way, room, number, turn)
                (answered.plain if way is None else answered.speculative).append(decoded)
            answered.prompt_ids.append(ids)
            texts.append(self._text(answered.speculative[-1]))
        return answered

    def summarise(self, done: Sequence[_Answered]) -> EvaluationResult:
        """Add up."""
        greedy = self.config.compare and self.config.temperature == 0
        speculative = [decoded for one in done for decoded in one.speculative]
        plain = [decoded for one in done for decoded in one.plain]
        return EvaluationResult(
            acceptance=self._acceptance(done),
            rows=tuple(one.row() for one in done),
            by_context=by_context_length(
                [one.contexts for one in done], self.drafter.num_draft_tokens
            ),
            speculative=_cost(speculative),
            plain=_cost(plain) if self.config.compare else None,
            lossless_prompts=sum(one.lossless for one in done) if greedy else None,
            mismatches=tuple(m for one in done for m in self._mismatches(one)) if greedy else (),
            distinct_4gram_share=distinct_gram_share(decoded.tokens for decoded in speculative),
            settings={
                "temperature": self.config.temperature,
                "sampling": self.config.sampling.value if self.config.temperature > 0 else None,
                "max_new_tokens": self.config.max_new_tokens,
                "seed": self.seed,
                "prompts": self.config.prompts,
                "engine": "in process",
                "device": str(self.verifier.device),
                "verifier": self.verifier.spec.name_or_path,
            },
            examples=tuple(self._example(one) for one in done[:_EXAMPLES]),
            answers=tuple(tuple(d.tokens for d in one.speculative) for one in done),
            num_unanswered_turns=sum(one.num_unanswered for one in done),
        )

    def _prompt_ids(self, prompt: Prompt, answers: Sequence[str]) -> list[int]:
        if prompt.input_ids is not None and not answers:
            return list(prompt.input_ids)
        return self.tokenizer.prompt_ids(prompt.history(answers))

    def _decode(
        self, ids: Sequence[int], drafter: Drafter[Any] | None, room: int, number: int, turn: int
    ) -> Decoded:
        purpose = "evaluation" if drafter is not None else "evaluation without drafting"
        return decode(
            self.verifier,
            ids,
            drafter=drafter,
            layer_ids=self.drafter.config.target_layer_ids or (),
            max_new_tokens=room,
            stop_ids=self.tokenizer.end_of_turn_ids,
            temperature=self.config.temperature,
            sampling=self.config.sampling,
            generator=StepContext(self.seed, number, turn).generator(purpose),
        )

    def _room(self, ids: Sequence[int], prompt: Prompt) -> int:
        """Answer tokens that fit: the last block reaches past the answer, and must fit too."""
        room = self._space(ids)
        if room < 1:
            longest = self.verifier.spec.max_position_embeddings
            raise DataError(
                f"{prompt.source or prompt.prompt_id}: {len(ids)} tokens leave no room for an "
                f"answer in the verifier's context of {longest}; shorten the prompt"
            )
        return min(room, self.config.max_new_tokens)

    def _space(self, ids: Sequence[int]) -> int:
        longest = self.verifier.spec.max_position_embeddings
        return longest - len(ids) - self.drafter.num_draft_tokens

    def _text(self, decoded: Decoded) -> str:
        """Return an answer as it stands in a history, without its end-of-turn token."""
        return self.tokenizer.decode(decoded.tokens[: -1 if decoded.stopped else None])

    def _acceptance(self, done: Sequence[_Answered]) -> Acceptance:
        runs = [one.accepted for one in done]
        return Acceptance.from_runs(runs, self.drafter.num_draft_tokens)

    def _mismatches(self, one: _Answered) -> list[Mismatch]:
        turns = zip(one.prompt_ids, one.plain, one.speculative, strict=True)
        found = [
            find_mismatch(
                *(self.verifier, ids, plain.tokens, speculative.tokens),
                prompt_id=one.prompt.prompt_id,
                turn=turn,
            )
            for turn, (ids, plain, speculative) in enumerate(turns)
        ]
        return [mismatch for mismatch in found if mismatch is not None]

    def _example(self, one: _Answered) -> Example:
        decoded, ids = one.speculative[0], one.prompt_ids[0]
        text = self.tokenizer.token_text
        # The token at the anchor is the last one already known.
        known = [record.anchor_index - len(ids) + 1 for record in decoded.drafts]
        return Example(
            prompt_id=one.prompt.prompt_id,
            category=one.prompt.category,
            prompt=one.prompt.turns[0],
            first=text(decoded.tokens[0]),
            drafts=tuple(
                ExampleDraft(
                    drafted=tuple(map(text, record.drafted)),
                    num_accepted=record.num_accepted,
                    bonus=text(record.bonus),
                    num_kept=min(record.num_accepted + 1, len(decoded.tokens) - before),
                )
                for record, before in zip(decoded.drafts, known, strict=True)
            ),
        )


def _cost(answers: Sequence[Decoded]) -> Cost:
    fields = [name.name for name in dataclasses.fields(Cost) if name.name != "tokens"]
    sums = {name: sum(getattr(decoded, name) for decoded in answers) for name in fields}
    return Cost(tokens=sum(len(decoded.tokens) for decoded in answers), **sums)

"""What an evaluation found, and its JSON form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.slices import PromptRow, by_category, by_prompt_length, by_suite
from speculators.evaluation.speed import speed, speedup, speedup_interval

_GRAM = 4


@dataclass(frozen=True)
class ExampleDraft:
    """One draft in words.

    Attributes:
        drafted: text of every drafted token.
        num_accepted: how many stood.
        bonus: text of the verifier's own token after them.
        num_kept: accepted and bonus tokens that are part of the trimmed answer.
    """

    drafted: tuple[str, ...]
    num_accepted: int
    bonus: str
    num_kept: int


@dataclass(frozen=True)
class Example:
    """One answer as it came about: the first token, then draft after draft."""

    prompt_id: str
    category: str | None
    prompt: str
    first: str
    drafts: tuple[ExampleDraft, ...]


@dataclass(frozen=True)
class Mismatch:
    """A greedy answer that differs from plain decoding.

    Attributes:
        prompt_id: which prompt.
        turn: which of its answers, from 0.
        index: first differing token of the answer.
        expected: the token of plain decoding, None where that answer has ended.
        got: the token of speculative decoding, likewise.
        logit_gap: how far apart the verifier sees the two, in one pass over the common prefix;
            rounding (below about 1e-3 in fp32, 0.1 in bf16) means a tie and not an error.
    """

    prompt_id: str
    turn: int
    index: int
    expected: int | None
    got: int | None
    logit_gap: float | None


@dataclass(frozen=True)
class Cost:
    """Sums over all answers of one way of decoding.

    Attributes:
        tokens: answer tokens.
        verifier_calls: forward passes of the verifier, prefill included.
        seconds: wall clock.
        draft_seconds: of it, in the drafter.
        verify_seconds: of it, in the verifier after prefill.
    """

    tokens: int = 0
    verifier_calls: int = 0
    seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Answer tokens per second of wall clock."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class EvaluationResult:
    """Acceptance, losslessness and speed on a set of prompts.

    Attributes:
        acceptance: of all drafts, one entry per prompt.
        rows: the prompts, in the order of `acceptance`.
        by_context: acceptance by the tokens that stood before a draft; empty where a server keeps
            that to itself.
        speculative: cost with drafting.
        plain: cost without, over the same prompts and interleaved; None when not compared.
        lossless_prompts: prompts whose every answer equals plain decoding token for token; None
            when not compared or not greedy.
        mismatches: where the others part.
        distinct_4gram_share: distinct 4-grams over all 4-grams within an answer, pooled; far
            below 1 means the verifier loops, and acceptance on loops means nothing.
        settings: what was asked for (temperature, sampling, lengths, seed).
        examples: the first prompts, draft by draft.
        answers: tokens of every answer, by prompt and turn; not part of the JSON.
        num_unanswered_turns: later turns that found the verifier's context full.
    """

    acceptance: Acceptance
    rows: tuple[PromptRow, ...]
    by_context: dict[str, Acceptance]
    speculative: Cost
    plain: Cost | None
    lossless_prompts: int | None
    mismatches: tuple[Mismatch, ...]
    distinct_4gram_share: float
    settings: dict[str, Any]
    examples: tuple[Example, ...]
    answers: tuple[tuple[tuple[int, ...], ...], ...] = ()
    num_unanswered_turns: int = 0

    @property
    def seed(self) -> int:
        """Seed of sampling and of every interval."""
        return int(self.settings.get("seed", 0))

    @property
    def num_prompts(self) -> int:
        """Prompts decoded."""
        return self.acceptance.num_prompts

    @property
    def by_suite(self) -> dict[str, Acceptance]:
        """Acceptance per suite; empty when no prompt belongs to one."""
        return self._slices(by_suite(self.rows))

    @property
    def by_category(self) -> dict[str, Acceptance]:
        """Acceptance per category; empty when no prompt has one."""
        return self._slices(by_category(self.rows))

    @property
    def mean_of_suites(self) -> float | None:
        """Mean acceptance length of the suites, each counting the same; None with fewer than two.

        Published tables average so; pooled drafts would weigh a suite by its size.
        """
        lengths = [part.length for part in self.by_suite.values()]
        return sum(lengths) / len(lengths) if len(lengths) > 1 else None

    @property
    def verifier_calls_saved(self) -> float:
        """Share of verifier calls saved; plain decoding needs one per token, prefill included."""
        return 1.0 - self.speculative.verifier_calls / max(self.speculative.tokens, 1)

    @property
    def speedup(self) -> float | None:
        """Tokens per second over those of plain decoding; None when not compared.

        With equal answers this is plain seconds over speculative seconds.
        """
        if self.plain is None or self.plain.tokens_per_second == 0:
            return None
        return self.speculative.tokens_per_second / self.plain.tokens_per_second

    def to_dict(self) -> dict[str, Any]:
        """Return every number with its definition, ready for JSON."""
        seed = self.seed
        return {
            **self.acceptance.to_dict(seed=seed),
            "num_prompts": self.num_prompts,
            "lossless_prompts": self.lossless_prompts,
            "mismatches": [asdict(mismatch) for mismatch in self.mismatches],
            "verifier_calls": self.speculative.verifier_calls,
            "baseline_verifier_calls": None if self.plain is None else self.plain.verifier_calls,
            "verifier_calls_saved": self.verifier_calls_saved,
            "speedup": self.speedup,
            "speedup_ci95": speedup_interval(self.rows, seed=seed),
            "tokens_per_second": self.speculative.tokens_per_second,
            "baseline_tokens_per_second": (
                None if self.plain is None else self.plain.tokens_per_second
            ),
            "num_answer_tokens": self.speculative.tokens,
            "num_unanswered_turns": self.num_unanswered_turns,
            "speculative_seconds": self.speculative.seconds,
            "baseline_seconds": None if self.plain is None else self.plain.seconds,
            "draft_seconds": self.speculative.draft_seconds,
            "verify_seconds": self.speculative.verify_seconds,
            "distinct_4gram_share": self.distinct_4gram_share,
            "mean_of_suites": self.mean_of_suites,
            "suites": self._parts(by_suite(self.rows)),
            "categories": self._parts(by_category(self.rows)),
            "prompt_lengths": self._parts(by_prompt_length(self.rows)),
            "context_lengths": {
                name: {"num_prompts": part.num_prompts, **_numbers(part, seed)}
                for name, part in self.by_context.items()
            },
            "settings": self.settings,
            "examples": [asdict(example) for example in self.examples],
            "prompts": [self._prompt(place, row) for place, row in enumerate(self.rows)],
        }

    def _slices(self, places: Mapping[str, Sequence[int]]) -> dict[str, Acceptance]:
        return {name: self.acceptance.select(some) for name, some in places.items()}

    def _parts(self, places: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        return {name: self._part(some) for name, some in places.items()}

    def _part(self, places: Sequence[int]) -> dict[str, Any]:
        rows = [self.rows[place] for place in places]
        part = self.acceptance.select(places)
        return {
            "num_prompts": len(rows),
            **_numbers(part, self.seed),
            "tokens_per_second": speed(rows),
            "speedup": speedup(rows),
            "speedup_ci95": speedup_interval(rows, seed=self.seed),
        }

    def _prompt(self, place: int, row: PromptRow) -> dict[str, Any]:
        return {
            **asdict(row),
            "drafts": int(self.acceptance.drafts[place]),
            "accepted_per_position": self.acceptance.reached[place].tolist(),
        }


def distinct_gram_share(answers: Iterable[Sequence[int]]) -> float:
    """Return distinct 4-grams / 4-grams, each counted within its answer; 1.0 without any."""
    total = distinct = 0
    for answer in answers:
        grams = [tuple(answer[i : i + _GRAM]) for i in range(len(answer) - _GRAM + 1)]
        total += len(grams)
        distinct += len(set(grams))
    return distinct / total if total else 1.0


def _numbers(part: Acceptance, seed: int) -> dict[str, Any]:
    return {key: value for key, value in part.to_dict(seed=seed).items() if key != "definition"}

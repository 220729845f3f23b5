"""What a running server answered, added up with the definitions of an evaluation in process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from speculators.config.schema import EvaluationConfig
from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.comparison import find_mismatch
from speculators.evaluation.engine_metrics import DraftCounters
from speculators.evaluation.load import SPEED_DEFINITION, Level
from speculators.evaluation.prompts import Prompt
from speculators.evaluation.result import Cost, EvaluationResult, Mismatch, distinct_gram_share
from speculators.evaluation.slices import PromptRow
from speculators.evaluation.verifier import CachedVerifier
from speculators.hidden_states.online.completions import Ask
from speculators.hidden_states.online.streaming import Streamed


@dataclass
class ServedPrompt:
    """One prompt with the server's answers and what they cost, turn by turn.

    Attributes:
        prompt: what was asked.
        prompt_ids: token ids each turn began with.
        asked: the requests.
        answers: token ids.
        counts: what the server's counters gained.
        streamed: the answers with their times.
        plain: those of the server without drafting, where there is one.
    """

    prompt: Prompt
    prompt_ids: list[list[int]] = field(default_factory=list)
    asked: list[Ask] = field(default_factory=list)
    answers: list[tuple[int, ...]] = field(default_factory=list)
    counts: list[DraftCounters] = field(default_factory=list)
    streamed: list[Streamed] = field(default_factory=list)
    plain: list[Streamed] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """From each request to its last token."""
        return sum(answer.last_seconds for answer in self.streamed)

    def row(self) -> PromptRow:
        """Describe it."""
        return PromptRow.of(
            *(self.prompt, self.prompt_ids[0]),
            tokens=sum(map(len, self.answers)),
            seconds=self.seconds,
            plain_tokens=sum(len(a.token_ids) for a in self.plain) if self.plain else None,
            plain_seconds=sum(a.last_seconds for a in self.plain) if self.plain else None,
        )

    def acceptance(self, num_draft_tokens: int) -> Acceptance:
        """Return the statistics of all its turns."""
        zero = DraftCounters(0, 0, 0, (0,) * num_draft_tokens)
        return DraftCounters.total([zero, *self.counts]).acceptance()

    def differences(
        self, expected: Sequence[Sequence[int]], verifier: CachedVerifier | None
    ) -> list[Mismatch]:
        """Return where its answers leave the expected ones, token ids by turn."""
        turns = zip(self.prompt_ids, expected, self.answers, strict=True)
        found = [
            find_mismatch(verifier, *turn, prompt_id=self.prompt.prompt_id, turn=number)
            for number, turn in enumerate(turns)
        ]
        return [mismatch for mismatch in found if mismatch is not None]


@dataclass(frozen=True)
class ServedAnswers:
    """What a server answered, and what its counters say about it.

    Attributes:
        endpoint: base URL.
        version: of the server.
        num_draft_tokens: tokens per draft, K.
        config: lengths, temperature and baseline that prompts were asked with.
        seed: of the confidence interval.
        done: every prompt.
        levels: speeds by number of requests at once.
    """

    endpoint: str
    version: str
    num_draft_tokens: int
    config: EvaluationConfig
    seed: int
    done: Sequence[ServedPrompt]
    levels: Sequence[Level]

    def result(
        self, reference: EvaluationResult | None = None, verifier: CachedVerifier | None = None
    ) -> EvaluationResult:
        """Add up, with the definitions of an evaluation in process.

        Args:
            reference: the same prompts decoded in this process; its answers are compared.
            verifier: with a reference: tells how close differing tokens are.
        """
        answers = [answer for one in self.done for answer in one.answers]
        num_drafts = sum(count.drafts for one in self.done for count in one.counts)
        mismatches = self._mismatches(reference, verifier)
        sampled = self.config.temperature > 0
        return EvaluationResult(
            acceptance=Acceptance.merge(
                [one.acceptance(self.num_draft_tokens) for one in self.done]
            ),
            rows=tuple(one.row() for one in self.done),
            by_context={},
            speculative=Cost(
                tokens=sum(map(len, answers)),
                verifier_calls=num_drafts + len(answers),
                seconds=sum(one.seconds for one in self.done),
            ),
            plain=self._plain(),
            lossless_prompts=None if mismatches is None else sum(not m for m in mismatches),
            mismatches=tuple(m for found in mismatches or () for m in found),
            distinct_4gram_share=distinct_gram_share(answers),
            settings={
                "temperature": self.config.temperature,
                "sampling": "server" if sampled else None,
                "max_new_tokens": self.config.max_new_tokens,
                "seed": self.seed,
                "prompts": self.config.prompts,
                "engine": f"vllm {self.version} at {self.endpoint}",
            },
            examples=(),
            answers=tuple(tuple(one.answers) for one in self.done),
        )

    def speeds(self) -> dict[str, Any]:
        """Return latency and throughput at every concurrency, with their definition."""
        return {
            "levels": [level.to_dict() for level in self.levels],
            "num_draft_tokens": self.num_draft_tokens,
            "definition": SPEED_DEFINITION,
        }

    def _mismatches(
        self, reference: EvaluationResult | None, verifier: CachedVerifier | None
    ) -> list[list[Mismatch]] | None:
        """Compare with the server that does not draft, else with the reference, else not at all."""
        if self.config.baseline_endpoint is not None and self.config.temperature == 0:
            return [one.differences([a.token_ids for a in one.plain], None) for one in self.done]
        if reference is None or verifier is None:
            return None
        pairs = zip(self.done, reference.answers, strict=True)
        return [one.differences(expected, verifier) for one, expected in pairs]

    def _plain(self) -> Cost | None:
        answers = [answer for one in self.done for answer in one.plain]
        tokens = sum(len(answer.token_ids) for answer in answers)
        seconds = sum(answer.last_seconds for answer in answers)
        return Cost(tokens, tokens, seconds) if answers else None

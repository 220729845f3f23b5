"""Evaluation of a running server: the same prompts, its own counters, the same definition.

Prompts go one at a time, so that what the counters gained belongs to a prompt. That is checked by
arithmetic: an answer of n tokens is one token of the prefill and what the verify calls gave, of
which at most K stand behind its end. Anything else means that somebody else used the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from speculators.config.schema import EvaluationConfig
from speculators.errors import DataError, HiddenStateError, LaunchError
from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.comparison import find_mismatch
from speculators.evaluation.engine_metrics import DraftCounters
from speculators.evaluation.load import SPEED_DEFINITION, Level, Speed, measure, parts
from speculators.evaluation.progress import DecodingProgress
from speculators.evaluation.prompts import Prompt
from speculators.evaluation.result import (
    Cost,
    EvaluationResult,
    Mismatch,
    distinct_gram_share,
)
from speculators.evaluation.slices import PromptRow
from speculators.evaluation.verifier import CachedVerifier, PromptTokenizer
from speculators.hidden_states.online.client import ServedModel, VllmClient, base_url
from speculators.hidden_states.online.completions import Ask
from speculators.hidden_states.online.failures import AttemptError
from speculators.hidden_states.online.streaming import Streamed

_TIMEOUT_SECONDS = 600.0
_COUNTERS_SECONDS = 10.0


@dataclass(frozen=True)
class ServedCheckpoint:
    """What the server must be serving.

    Attributes:
        names: last components under which checkpoint and verifier may be known there.
        num_draft_tokens: tokens per draft, K.
        context: longest sequence of the verifier.
    """

    names: frozenset[str]
    num_draft_tokens: int
    context: int


@dataclass
class _Served:
    """One prompt with the server's answers and what they cost."""

    prompt: Prompt
    prompt_ids: list[list[int]] = field(default_factory=list)
    asked: list[Ask] = field(default_factory=list)
    answers: list[tuple[int, ...]] = field(default_factory=list)
    counts: list[DraftCounters] = field(default_factory=list)
    streamed: list[Streamed] = field(default_factory=list)
    plain: list[Streamed] = field(default_factory=list)

    @property
    def seconds(self) -> float:
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


def evaluate_served(
    endpoint: str,
    checkpoint: ServedCheckpoint,
    tokenizer: PromptTokenizer,
    prompts: Sequence[Prompt],
    config: EvaluationConfig,
    *,
    seed: int,
    console: Console | None = None,
) -> ServedAnswers:
    """Send prompts to `vllm serve CHECKPOINT`, greedily, and read acceptance from its counters.

    Args:
        endpoint: base URL.
        checkpoint: what must be served there.
        tokenizer: makes prompts and reads answers.
        prompts: what to decode.
        config: lengths.
        seed: of the confidence interval.
        console: where to show progress.

    Raises:
        LaunchError: no server, another model, no drafting, or other requests at the same time.
        DataError: no prompt, or one that leaves no room for an answer.
    """
    if not prompts:
        raise DataError("evaluation: no prompt to decode")
    run = _Run(endpoint, checkpoint, tokenizer, config, seed)
    try:
        done = asyncio.run(run.all(prompts, console))
    except AttemptError as failure:
        raise LaunchError(
            f"evaluation.endpoint={endpoint}: {failure.reason}; the server is started with "
            "`vllm serve CHECKPOINT`"
        ) from None
    except (LaunchError, HiddenStateError) as error:
        raise LaunchError(f"evaluation.endpoint={endpoint}: {error}") from None
    return ServedAnswers(run, done, seed)


@dataclass(frozen=True)
class _Side:
    """One of the servers that are compared."""

    url: str
    model: str
    kind: str


@dataclass
class _Run:
    """What stays the same over all prompts."""

    endpoint: str
    checkpoint: ServedCheckpoint
    tokenizer: PromptTokenizer
    config: EvaluationConfig
    seed: int
    version: str = ""
    levels: list[Level] = field(default_factory=list)

    async def all(self, prompts: Sequence[Prompt], console: Console | None) -> list[_Served]:
        url, client = base_url(self.endpoint), VllmClient(_TIMEOUT_SECONDS)
        try:
            model = await client.served_model(url)
            self._check_model(model)
            self.version = await client.version(url)
            counters = DraftCounters.parse(await client.metrics(url))
            self._check_drafts(counters)
            plain = await self._baseline(client)
            done = []
            with DecodingProgress(len(prompts), console, enabled=True) as bar:
                for prompt in prompts:
                    one = _Served(prompt)
                    counters = await self._answer(client, url, model, one, counters)
                    if plain is not None:
                        asked = await self._ask(client, plain, one.asked, 1, len(done))
                        one.plain = list(asked.answers)
                    done.append(one)
                    bar.advance(
                        sum(map(len, one.answers)),
                        sum(c.drafts for c in one.counts),
                        sum(c.accepted_tokens for c in one.counts),
                    )
            await self._levels(client, _Side(url, model.name, "drafting"), plain, done)
            return done
        finally:
            await client.close()

    async def _levels(
        self, client: VllmClient, drafting: _Side, plain: _Side | None, done: Sequence[_Served]
    ) -> None:
        """Add up one request at a time, then ask the same turns, as many at once as asked for."""
        questions = [ask for one in done for ask in one.asked]
        self.levels.append(self._one_at_a_time(done, plain is not None))
        for concurrency in sorted({1, *self.config.concurrency} - {1}):
            if concurrency > len(questions):
                raise LaunchError(
                    f"evaluation.concurrency={concurrency}: there are {len(questions)} turns to "
                    "ask only: give more prompts, or fewer requests at once"
                )
            found: dict[str, list[Speed]] = {"drafting": [], "plain": []}
            for number, part in enumerate(parts(questions, concurrency)):
                sides = [drafting] if plain is None else [drafting, plain]
                for side in sides if number % 2 == 0 else reversed(sides):
                    speed = await self._ask(client, side, part, concurrency, number)
                    found[side.kind].append(speed)
            fast, slow = found["drafting"], found["plain"]
            self.levels.append(
                Level(concurrency, Speed.joined(fast), Speed.joined(slow) if slow else None)
            )

    def _one_at_a_time(self, done: Sequence[_Served], compared: bool) -> Level:
        """Return the level of the requests that acceptance was read from."""
        answers = tuple(answer for one in done for answer in one.streamed)
        counters = DraftCounters.total([c for one in done for c in one.counts])
        fast = Speed(answers, sum(one.seconds for one in done), counters)
        rest = tuple(answer for one in done for answer in one.plain)
        seconds = sum(answer.last_seconds for answer in rest)
        return Level(1, fast, Speed(rest, seconds) if compared else None)

    async def _ask(
        self,
        client: VllmClient,
        side: _Side,
        questions: Sequence[Ask],
        concurrency: int,
        part: int,
    ) -> Speed:
        """Ask one server; where it drafts, with what its counters gained."""
        drafts = side.kind == "drafting"
        before = DraftCounters.parse(await client.metrics(side.url)) if drafts else None
        asked = await measure(
            *(client, side.url, side.model, questions),
            concurrency=concurrency,
            salt=f"{side.kind}-{concurrency}-{part}",
        )
        if before is None:
            return asked
        wanted = asked.tokens - len(asked.answers)
        after = await self._moved(client, side.url, before, wanted)
        return Speed(asked.answers, asked.seconds, after - before)

    async def _baseline(self, client: VllmClient) -> _Side | None:
        """Return the server without drafting, if there is one."""
        if self.config.baseline_endpoint is None:
            return None
        url = base_url(self.config.baseline_endpoint)
        try:
            model = await client.served_model(url)
            text = await client.metrics(url)
        except AttemptError as failure:
            raise LaunchError(f"baseline_endpoint={url}: {failure.reason}") from None
        if DraftCounters.counted(text):
            raise LaunchError(
                f"baseline_endpoint={url}: drafts too; start it with `vllm serve VERIFIER`"
            )
        self._check_model(model)
        return _Side(url, model.name, "plain")

    async def _answer(
        self, client: VllmClient, url: str, model: ServedModel, one: _Served, before: DraftCounters
    ) -> DraftCounters:
        texts: list[str] = []
        for _ in one.prompt.turns:
            ids = self._prompt_ids(one.prompt, texts)
            ask = Ask(
                ids,
                self._room(ids, one.prompt, model),
                self.config.temperature,
                self.seed,
                sorted(self.tokenizer.end_of_turn_ids),
                f"acceptance-{one.prompt.suite}-{one.prompt.prompt_id}",
            )
            written = await client.stream(url, model.name, ask)
            one.asked.append(ask)
            one.streamed.append(written)
            after = await self._settled(client, url, before, len(written.token_ids))
            one.prompt_ids.append(ids)
            one.answers.append(tuple(written.token_ids))
            one.counts.append(after - before)
            before = after
            stopped = written.token_ids[-1] in self.tokenizer.end_of_turn_ids
            texts.append(self.tokenizer.decode(written.token_ids[: -1 if stopped else None]))
        return before

    async def _settled(
        self, client: VllmClient, url: str, before: DraftCounters, num_tokens: int
    ) -> DraftCounters:
        """Return the counters when they account for an answer, and for no other."""
        now = await self._moved(client, url, before, num_tokens - 1)
        gained = now - before
        if gained.emitted + 1 > num_tokens + self.checkpoint.num_draft_tokens:
            raise LaunchError(
                f"an answer of {num_tokens} tokens moved the counters by {gained.emitted}: other "
                "requests are being served at the same time; evaluate a server nobody else uses"
            )
        return now

    async def _moved(
        self, client: VllmClient, url: str, before: DraftCounters, emitted: int
    ) -> DraftCounters:
        """Return the counters when they have moved so far: they come a little after an answer."""
        deadline = time.monotonic() + _COUNTERS_SECONDS
        while True:
            now = DraftCounters.parse(await client.metrics(url))
            gained = now - before
            if gained.emitted >= emitted:
                return now
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"answers of {emitted} verified tokens moved the counters by {gained.emitted} "
                    "only: something between here and the server keeps its metrics or its "
                    "answers; ask the server itself"
                )
            await asyncio.sleep(0.02)

    def _prompt_ids(self, prompt: Prompt, answers: Sequence[str]) -> list[int]:
        if prompt.input_ids is not None and not answers:
            return list(prompt.input_ids)
        return self.tokenizer.prompt_ids(prompt.history(answers))

    def _room(self, ids: Sequence[int], prompt: Prompt, model: ServedModel) -> int:
        """Answer tokens that fit, as in process: the last block reaches past the answer."""
        room = self.checkpoint.context - len(ids) - self.checkpoint.num_draft_tokens
        if room < 1:
            raise DataError(
                f"{prompt.source or prompt.prompt_id}: {len(ids)} tokens leave no room for an "
                f"answer in the verifier's context of {self.checkpoint.context}; shorten the prompt"
            )
        room = min(room, self.config.max_new_tokens)
        needed = len(ids) + room + self.checkpoint.num_draft_tokens
        if model.max_model_len is not None and model.max_model_len < needed:
            raise LaunchError(
                f"the server takes {model.max_model_len} tokens (--max-model-len), "
                f"{prompt.source or prompt.prompt_id} needs {needed}: start it with more, or lower "
                "evaluation.max_new_tokens"
            )
        return room

    def _check_model(self, model: ServedModel) -> None:
        found = {name.rstrip("/").rpartition("/")[2] for name in (model.name, model.root)}
        if not found & self.checkpoint.names:
            raise LaunchError(
                f"serves {model.root}, not {' or '.join(sorted(self.checkpoint.names))}: another "
                "model; start the server with `vllm serve CHECKPOINT`"
            )

    def _check_drafts(self, counters: DraftCounters) -> None:
        got, wanted = len(counters.per_position), self.checkpoint.num_draft_tokens
        if got != wanted:
            raise LaunchError(
                f"the server drafts {got} tokens at a time, the checkpoint {wanted}: another "
                "drafter (or a server of `speculators serve`, which extracts); start it with "
                "`vllm serve CHECKPOINT`"
            )


@dataclass(frozen=True)
class ServedAnswers:
    """What a server answered, and what its counters say about it."""

    _run: _Run
    _done: Sequence[_Served]
    _seed: int

    def result(
        self, reference: EvaluationResult | None = None, verifier: CachedVerifier | None = None
    ) -> EvaluationResult:
        """Add up, with the definitions of an evaluation in process.

        Args:
            reference: the same prompts decoded in this process; its answers are compared.
            verifier: with a reference: tells how close differing tokens are.
        """
        size, done = self._run.checkpoint.num_draft_tokens, self._done
        answers = [answer for one in done for answer in one.answers]
        num_drafts = sum(count.drafts for one in done for count in one.counts)
        mismatches: list[list[Mismatch]] | None = None
        if self._run.config.baseline_endpoint is not None and self._run.config.temperature == 0:
            mismatches = [
                _differences(one, [answer.token_ids for answer in one.plain], None) for one in done
            ]
        elif reference is not None and verifier is not None:
            mismatches = [
                _differences(one, expected, verifier)
                for one, expected in zip(done, reference.answers, strict=True)
            ]
        return EvaluationResult(
            acceptance=Acceptance.merge([one.acceptance(size) for one in done]),
            rows=tuple(one.row() for one in done),
            by_context={},
            speculative=Cost(
                tokens=sum(map(len, answers)),
                verifier_calls=num_drafts + len(answers),
                seconds=sum(one.seconds for one in done),
            ),
            plain=self._plain(),
            lossless_prompts=None if mismatches is None else sum(not m for m in mismatches),
            mismatches=tuple(m for found in mismatches or () for m in found),
            distinct_4gram_share=distinct_gram_share(answers),
            settings={
                "temperature": self._run.config.temperature,
                "sampling": "server" if self._run.config.temperature > 0 else None,
                "max_new_tokens": self._run.config.max_new_tokens,
                "seed": self._seed,
                "prompts": self._run.config.prompts,
                "engine": f"vllm {self._run.version} at {self._run.endpoint}",
            },
            examples=(),
            answers=tuple(tuple(one.answers) for one in done),
        )

    def speeds(self) -> dict[str, Any]:
        """Return latency and throughput at every concurrency, with their definition."""
        return {
            "levels": [level.to_dict() for level in self._run.levels],
            "num_draft_tokens": self._run.checkpoint.num_draft_tokens,
            "definition": SPEED_DEFINITION,
        }

    def _plain(self) -> Cost | None:
        answers = [answer for one in self._done for answer in one.plain]
        tokens = sum(len(answer.token_ids) for answer in answers)
        seconds = sum(answer.last_seconds for answer in answers)
        return Cost(tokens, tokens, seconds) if answers else None


def _differences(
    one: _Served, expected: Sequence[Sequence[int]], verifier: CachedVerifier | None
) -> list[Mismatch]:
    turns = zip(one.prompt_ids, expected, one.answers, strict=True)
    found = [
        find_mismatch(verifier, *turn, prompt_id=one.prompt.prompt_id, turn=number)
        for number, turn in enumerate(turns)
    ]
    return [mismatch for mismatch in found if mismatch is not None]

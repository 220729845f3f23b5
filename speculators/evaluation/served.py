"""Evaluation of a running server: the same prompts, its own counters, the same definition.

Prompts go one at a time, so that what the counters gained belongs to a prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console

from speculators.config.schema import EvaluationConfig
from speculators.errors import DataError, HiddenStateError, LaunchError
from speculators.evaluation.engine_metrics import DraftCounters
from speculators.evaluation.load import Level, Speed, measure, parts
from speculators.evaluation.progress import DecodingProgress
from speculators.evaluation.prompts import Prompt
from speculators.evaluation.served_answers import ServedAnswers, ServedPrompt
from speculators.evaluation.served_counters import moved, settled
from speculators.evaluation.verifier import PromptTokenizer
from speculators.hidden_states.online.client import ServedModel, VllmClient, base_url
from speculators.hidden_states.online.completions import Ask
from speculators.hidden_states.online.failures import AttemptError

_TIMEOUT_SECONDS = 600.0


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

    def check_model(self, model: ServedModel, started_with: str = "CHECKPOINT") -> None:
        """Refuse a server of another model.

        Args:
            model: what it serves.
            started_with: what `vllm serve` is to be given.

        Raises:
            LaunchError: it serves another one.
        """
        found = {name.rstrip("/").rpartition("/")[2] for name in (model.name, model.root)}
        if not found & self.names:
            raise LaunchError(
                f"serves {model.root}, not {' or '.join(sorted(self.names))}: another "
                f"model; start the server with `vllm serve {started_with}`"
            )

    def check_drafts(self, counters: DraftCounters) -> None:
        """Refuse a server that drafts otherwise, or not at all."""
        got, wanted = len(counters.per_position), self.num_draft_tokens
        if got != wanted:
            raise LaunchError(
                f"the server drafts {got} tokens at a time, the checkpoint {wanted}: another "
                "drafter (or a server of `speculators serve`, which extracts); start it with "
                "`vllm serve CHECKPOINT`"
            )


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
    """Send prompts to `vllm serve CHECKPOINT` and read acceptance from its counters.

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
    except _BaselineError:
        raise
    except (LaunchError, HiddenStateError) as error:
        raise LaunchError(f"evaluation.endpoint={endpoint}: {error}") from None
    size = checkpoint.num_draft_tokens
    return ServedAnswers(endpoint, run.version, size, config, seed, done, run.levels)


class _BaselineError(LaunchError):
    """Something is wrong with the server without drafting, which has a setting of its own."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(f"evaluation.baseline_endpoint={url}: {problem}")


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

    async def all(self, prompts: Sequence[Prompt], console: Console | None) -> list[ServedPrompt]:
        url, client = base_url(self.endpoint), VllmClient(_TIMEOUT_SECONDS)
        try:
            model = await client.served_model(url)
            self.checkpoint.check_model(model)
            self.version = await client.version(url)
            counters = DraftCounters.parse(await client.metrics(url))
            self.checkpoint.check_drafts(counters)
            plain = await self._baseline(client)
            done = []
            with DecodingProgress(len(prompts), console, enabled=True) as bar:
                for prompt in prompts:
                    one = ServedPrompt(prompt)
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
        self, client: VllmClient, drafting: _Side, plain: _Side | None, done: Sequence[ServedPrompt]
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

    def _one_at_a_time(self, done: Sequence[ServedPrompt], compared: bool) -> Level:
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
        try:
            asked = await measure(
                *(client, side.url, side.model, questions),
                concurrency=concurrency,
                salt=f"{side.kind}-{concurrency}-{part}",
            )
        except AttemptError as failure:
            if drafts:
                raise
            raise _BaselineError(side.url, failure.reason) from None
        if before is None:
            return asked
        wanted = asked.tokens - len(asked.answers)
        after = await moved(client, side.url, before, wanted)
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
            raise _BaselineError(url, failure.reason) from None
        if DraftCounters.counted(text):
            raise _BaselineError(url, "drafts too; start it with `vllm serve VERIFIER`")
        try:
            self.checkpoint.check_model(model, started_with="VERIFIER")
        except LaunchError as error:
            raise _BaselineError(url, str(error)) from None
        return _Side(url, model.name, "plain")

    async def _answer(
        self,
        client: VllmClient,
        url: str,
        model: ServedModel,
        one: ServedPrompt,
        before: DraftCounters,
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
            after = await settled(
                client, url, before, len(written.token_ids), self.checkpoint.num_draft_tokens
            )
            one.prompt_ids.append(ids)
            one.answers.append(tuple(written.token_ids))
            one.counts.append(after - before)
            before = after
            stopped = written.token_ids[-1] in self.tokenizer.end_of_turn_ids
            texts.append(self.tokenizer.decode(written.token_ids[: -1 if stopped else None]))
        return before

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

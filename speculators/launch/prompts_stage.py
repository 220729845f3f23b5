"""The prompts of an evaluation: suites, a file, or the beginnings of held-out conversations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speculators.config.schema import EvaluationConfig
from speculators.data.prepared import PreparedData, SampleSet, prompt_of
from speculators.data.template import VerifierTokenizer
from speculators.errors import DataError
from speculators.evaluation.prompts import Prompt, read_prompts
from speculators.evaluation.suites import Suite, read_suites


@dataclass(frozen=True)
class ChosenPrompts:
    """What will be decoded.

    Attributes:
        prompts: in order.
        suites: where they were published; empty for a file or held-out conversations.
        num_skipped: prompts left out because they are too long.
    """

    prompts: tuple[Prompt, ...] = ()
    suites: tuple[Suite, ...] = ()
    num_skipped: int = 0

    def record(self) -> dict[str, Any]:
        """Return where the prompts come from, for the settings of a result."""
        return {
            "suites": {suite.name: suite.to_dict() for suite in self.suites},
            "num_skipped_prompts": self.num_skipped,
        }


def find_prompts(
    config: EvaluationConfig,
    tokenizer: VerifierTokenizer,
    data: Callable[[], PreparedData],
    longest: int,
) -> ChosenPrompts:
    """Return the prompts to decode.

    Args:
        config: names suites or a file, or neither.
        tokenizer: shows held-out prompts as text.
        data: called only when there is neither.
        longest: tokens of a prompt that still leave room for an answer.

    Raises:
        DataError: a suite or the file cannot be used, or prompts are too long; by name.
    """
    if config.prompts is not None:
        prompts = tuple(read_prompts(Path(config.prompts), config.num_prompts))
        return _fitting(ChosenPrompts(prompts), config, tokenizer, longest)
    if config.suites:
        suites = tuple(read_suites(config.suites, config.num_prompts))
        prompts = tuple(prompt for suite in suites for prompt in suite.prompts)
        return _fitting(ChosenPrompts(prompts, suites), config, tokenizer, longest)
    return ChosenPrompts(held_out_prompts(data().validation, tokenizer, config.num_prompts))


def _fitting(
    chosen: ChosenPrompts, config: EvaluationConfig, tokenizer: VerifierTokenizer, longest: int
) -> ChosenPrompts:
    """Leave out prompts that are too long, or refuse them."""
    lengths = [len(tokenizer.prompt_ids(prompt.history([]))) for prompt in chosen.prompts]
    over = [
        f"{prompt.suite} {prompt.prompt_id} ({length})".removeprefix("None ")
        for prompt, length in zip(chosen.prompts, lengths, strict=True)
        if length > longest
    ]
    if not over:
        return chosen
    kept = [p for p, length in zip(chosen.prompts, lengths, strict=True) if length <= longest]
    if not config.skip_long or not kept:
        key = f"prompts={config.prompts}" if config.prompts else f"suites={list(config.suites)}"
        raise DataError(
            f"evaluation.{key}: {len(over)} prompts are longer than the {longest} tokens that "
            f"leave the verifier room for an answer: {', '.join(over[:5])}; leave them out with "
            "evaluation.skip_long=true"
        )
    return ChosenPrompts(tuple(kept), chosen.suites, len(over))


def held_out_prompts(
    samples: SampleSet, tokenizer: VerifierTokenizer, limit: int | None
) -> tuple[Prompt, ...]:
    """Cut validation samples before their first supervised token; one prompt per conversation."""
    prompts: dict[str, Prompt] = {}
    for index in range(len(samples)):
        if limit is not None and len(prompts) == limit:
            break
        sample = samples[index]
        ids = tuple(prompt_of(sample).tolist())
        if sample.conversation_id in prompts or not ids:
            continue
        prompts[sample.conversation_id] = Prompt(
            turns=(tokenizer.decode(ids),),
            prompt_id=sample.conversation_id,
            source="held-out conversation",
            input_ids=ids,
        )
    return tuple(prompts.values())

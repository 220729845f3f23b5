"""The prompts of an evaluation: a file, or the beginnings of held-out conversations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from speculators.config.schema import EvaluationConfig
from speculators.data.prepared import PreparedData, SampleSet, prompt_of
from speculators.data.template import VerifierTokenizer
from speculators.errors import DataError
from speculators.evaluation.prompts import Prompt, read_prompts


def find_prompts(
    config: EvaluationConfig,
    tokenizer: VerifierTokenizer,
    data: Callable[[], PreparedData],
    longest: int,
) -> list[Prompt]:
    """Return the prompts to decode.

    Args:
        config: names a file, or none.
        tokenizer: shows held-out prompts as text.
        data: called only when there is no file.
        longest: tokens of a prompt that still leave room for an answer.

    Raises:
        DataError: the file cannot be used, or some of its prompts are too long; by name.
    """
    if config.prompts is None:
        return held_out_prompts(data().validation, tokenizer, config.num_prompts)
    prompts = read_prompts(Path(config.prompts), config.num_prompts)
    lengths = {p.prompt_id: len(tokenizer.prompt_ids(p.history([]))) for p in prompts}
    if over := {name: length for name, length in lengths.items() if length > longest}:
        shown = ", ".join(f"{name} ({length})" for name, length in list(over.items())[:5])
        raise DataError(
            f"evaluation.prompts={config.prompts}: {len(over)} prompts are longer than the "
            f"{longest} tokens that leave the verifier room for an answer: {shown}; leave them out"
        )
    return prompts


def held_out_prompts(
    samples: SampleSet, tokenizer: VerifierTokenizer, limit: int | None
) -> list[Prompt]:
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
    return list(prompts.values())

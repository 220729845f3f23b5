"""The prompts of an evaluation: a file, or the beginnings of held-out conversations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from speculators.config.schema import EvaluationConfig
from speculators.data.prepared import PreparedData, SampleSet, prompt_of
from speculators.data.template import VerifierTokenizer
from speculators.evaluation.prompts import Prompt, read_prompts


def find_prompts(
    config: EvaluationConfig, tokenizer: VerifierTokenizer, data: Callable[[], PreparedData]
) -> list[Prompt]:
    """Return the prompts to decode.

    Args:
        config: names a file, or none.
        tokenizer: shows held-out prompts as text.
        data: called only when there is no file.
    """
    if config.prompts is not None:
        return read_prompts(Path(config.prompts), config.num_prompts)
    return held_out_prompts(data().validation, tokenizer, config.num_prompts)


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

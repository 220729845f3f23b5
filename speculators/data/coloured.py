"""A sample as a person reads it: what is supervised in colour, the rest grey."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool
from rich.console import Console
from rich.text import Text

from speculators.console import open_console
from speculators.data.prepared import SampleSet
from speculators.data.template import VerifierTokenizer
from speculators.data.types import Sample

SUPERVISED = "bold green"
CONTEXT = "bright_black"


Stretch: TypeAlias = tuple[str, bool]
"""Text, and whether it is supervised."""


@dataclass(frozen=True)
class Excerpt:
    """A part of a sample to be shown.

    Attributes:
        title: which sample.
        parts: its text.
    """

    title: str
    parts: tuple[Stretch, ...]


def headline(num_tokens: int, num_supervised: int, conversation_id: str) -> str:
    """Return what a sample is, in one line."""
    share = num_supervised / max(1, num_tokens)
    return (
        f"{num_tokens:,} tokens, {num_supervised:,} supervised ({share:.0%}), "
        f"conversation {conversation_id}"
    )


def stretches(sample: Sample, tokenizer: VerifierTokenizer) -> Iterator[Stretch]:
    """Yield the text of a sample, special tokens included, in stretches.

    Line breaks are shown as `⏎` before they happen, so that one can see which side they are on.
    """
    ids = sample.input_ids.tolist()
    done = ""
    for start, stop, supervised in _runs(sample.loss_mask.numpy()):
        # Some tokenizers drop the space before the first token they decode: decode from the
        # start, and show what is new.
        whole = tokenizer.decode(ids[:stop])
        new = whole[len(done) :] if whole.startswith(done) else tokenizer.decode(ids[start:stop])
        yield new.replace("\n", "⏎\n"), supervised
        done = whole


def coloured(sample: Sample, tokenizer: VerifierTokenizer) -> Text:
    """Return the text of a sample, supervised tokens coloured."""
    text = Text()
    for part, supervised in stretches(sample, tokenizer):
        text.append(part, style=SUPERVISED if supervised else CONTEXT)
    return text


def _runs(mask: Bool[np.ndarray, "token"]) -> Iterator[tuple[int, int, bool]]:
    borders = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(mask)]
    for start, stop in itertools.pairwise(borders):
        if stop > start:
            yield start, stop, bool(mask[start])


def print_samples(
    samples: SampleSet, tokenizer: VerifierTokenizer, count: int, console: Console | None = None
) -> None:
    """Print the first samples of `count` conversations with supervised tokens coloured."""
    console, shown = console or open_console(), set[str]()
    for index in range(len(samples)):
        if len(shown) == count:
            return
        sample = samples[index]
        if sample.conversation_id in shown:
            continue
        shown.add(sample.conversation_id)
        line = headline(len(sample), int(sample.loss_mask.sum()), sample.conversation_id)
        title = f"sample {index}: {line}"
        console.rule(Text(title, style="bold"), align="left")
        console.print(coloured(sample, tokenizer), soft_wrap=True)

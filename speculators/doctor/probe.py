"""Short prompts with the beginning of their answers, on which all sides are compared."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from speculators.data.prepared import SampleSet
from speculators.data.types import PackedBatch, Sample, Turn
from speculators.hidden_states.types import HiddenStates

FEWEST_ANSWER_TOKENS = 8
"""An answer shorter than this has no room for a draft or two."""

_LOOKED_AT = 256
_LONGEST_PROMPT = 512

QUESTIONS = (
    "How far is the moon?",
    "What is two plus three?",
    "Tell me a short story.",
    "Name a colour and a fruit.",
)
"""What is asked where nothing is known of the data."""

CONVERSATION = (
    Turn("user", "How far is the moon?"),
    Turn("assistant", "Very far away."),
    Turn("user", "And what about Mars?"),
)
"""Rendered to compare chat templates."""


@dataclass(frozen=True, eq=False)
class Probe:
    """The beginning of one conversation, with the states that were captured for it.

    Attributes:
        input_ids: prompt and the first tokens of the answer.
        start: index of the answer's first token.
        states: as captured.
    """

    input_ids: Int[Tensor, "token"]
    start: int
    states: HiddenStates

    @classmethod
    def of(cls, sample: Sample, states: HiddenStates, num_tokens: int) -> Probe:
        """Cut a sample and its states after `num_tokens` tokens of its first answer."""
        start, length = first_answer(sample)
        end = start + min(length, num_tokens)
        kept = HiddenStates(states.aux[:end].clone(), states.last[:end].clone())
        return cls(sample.input_ids[:end], start, kept)

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def prompt(self) -> tuple[int, ...]:
        """Tokens before the answer."""
        return tuple(self.input_ids[: self.start].tolist())

    def row(self) -> PackedBatch:
        """Return the probe as a row of one document, the answer supervised."""
        index = torch.arange(len(self))
        device = self.states.last.device
        return PackedBatch(
            self.input_ids,
            index >= self.start,
            torch.zeros_like(index),
            index,
            self.states.aux,
            self.states.last,
        ).to(device)

    def continued(
        self, at: int, tokens: Int[Tensor, "more"], num_supervised: int, states: float
    ) -> PackedBatch:
        """Return a row that goes on with other tokens after position `at`.

        States from `at` on are made up: nothing that is drafted after `at` may read the drafter's,
        and the teacher's are the same in every row.

        Args:
            at: position of the newest token.
            tokens: what follows it.
            num_supervised: supervised tokens, the newest one first; the rest is context.
            states: which made-up states for the drafter.
        """
        ids = torch.cat([self.input_ids[: at + 1], tokens.cpu()])
        index = torch.arange(len(ids))
        aux = _made_up(self.states.aux, at, len(ids), states)
        last = _made_up(self.states.last, at, len(ids), 1.0)
        supervised = (index >= at) & (index < at + num_supervised)
        row = PackedBatch(ids, supervised, torch.zeros_like(index), index, aux, last)
        return row.to(aux.device)


def choose_samples(sets: Sequence[SampleSet], limit: int) -> list[Sample]:
    """Return the samples that show most for the least: short prompts whose answers have room.

    Args:
        sets: where to look, one after the other; at the shortest samples of each.
        limit: how many.
    """
    orders = ((s, s.lengths.argsort(kind="stable")[:_LOOKED_AT].tolist()) for s in sets)
    found = (samples[index] for samples, order in orders for index in order)
    fit = (s for s in found if 2 <= first_answer(s)[0] <= _LONGEST_PROMPT)
    roomy = (s for s in fit if first_answer(s)[1] >= FEWEST_ANSWER_TOKENS)
    return list(itertools.islice(roomy, limit))


def first_answer(sample: Sample) -> tuple[int, int]:
    """Return where a sample's first answer begins, and its tokens; (0, 0) without one."""
    mask = sample.loss_mask.int()
    start = int(mask.argmax())
    return start, int(mask[start:].cumprod(0).sum())


def _made_up(known: Tensor, at: int, length: int, factor: float) -> Tensor:
    """Return known states before `at` and invented ones up to `length`."""
    invented = factor * known[:1].flip(-1)
    return torch.cat([known[:at], invented.expand(length - at, *known.shape[1:])])

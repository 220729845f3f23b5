"""Tests on checkpoints of a run: what tells one cause of low acceptance from another.

Decoding is that of the best checkpoint. What training said in the end is held against the newest: a
run that has gone wrong since its best has another drafter by then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from speculators.algorithms.base import Drafter
from speculators.config.schema import Config, EvaluationConfig
from speculators.data.loader import collate
from speculators.data.prepared import PreparedData, SampleSet
from speculators.data.types import PackedBatch, Sample
from speculators.doctor.checkpoint import CheckpointExamination
from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.evaluate import evaluate
from speculators.evaluation.walk import acceptance_walk
from speculators.launch.prompts_stage import held_out_prompts

_ANSWER_TOKENS = 64
_PROMPTS = 8
_FIRST_TOKENS = 4
"""A beginning of the text and the opening of a turn; no question fits in."""


class Lab:
    """Two checkpoints, their verifier, and samples of both sides of the split.

    Args:
        config: of the command: `doctor.num_samples` and `seed` are used.
        examination: of the best checkpoint.
        newest: the newest checkpoint, which may be the same.
        data: what the run was trained on.
        console: shows progress.
    """

    def __init__(
        self,
        config: Config,
        examination: CheckpointExamination,
        newest: Path,
        data: PreparedData,
        console: Console,
    ) -> None:
        self._config, self._examination, self._newest = config, examination, newest
        self.data, self._console = data, console
        self.verifier = examination.verifier

    @property
    def drafter(self) -> Drafter[Any]:
        """The best checkpoint's drafter.

        Raises:
            ValueError: it could not be read; the examination says why.
        """
        drafter = self._examination.subject.drafter
        if drafter is None:
            raise ValueError("no drafter")
        return drafter

    @cached_property
    def newest(self) -> Drafter[Any]:
        """The newest checkpoint's drafter.

        Raises:
            CheckpointError: it cannot be read.
        """
        same = self._newest.resolve() == self._examination.folder
        return self.drafter if same else self._examination.read(self._newest)

    @cached_property
    def held_out(self) -> list[PackedBatch]:
        """Rows of one held-out sample each, with states captured here."""
        return self.rows(self.data.validation)

    @cached_property
    def trained_on(self) -> list[PackedBatch]:
        """Rows of one training sample each, with states captured here."""
        return self.rows(self.data.train)

    def rows(self, samples: SampleSet, layer_ids: Sequence[int] | None = None) -> list[PackedBatch]:
        """Return rows of one sample each, spread over a set.

        Args:
            samples: the set.
            layer_ids: layers to read in place of the drafter's own, in this order.
        """
        number = min(self._config.doctor.num_samples, len(samples))
        at = np.linspace(0, max(len(samples) - 1, 0), number).astype(int)
        chosen = [samples[int(i)] for i in at]
        return [self._row(sample, layer_ids) for sample in chosen]

    def length(self, rows: Sequence[PackedBatch]) -> float:
        """Return the acceptance length of the best drafter's walk along rows."""
        return self.walk(self.drafter, rows).length

    def walk(self, drafter: Drafter[Any], rows: Sequence[PackedBatch]) -> Acceptance:
        """Walk along rows as decoding walks."""
        return acceptance_walk(
            drafter,
            self.verifier.head(),
            rows,
            end_of_turn_ids=self.verifier.tokenizer.end_of_turn_ids,
        ).acceptance

    @cached_property
    def walked_held_out(self) -> Acceptance:
        """The best drafter's walk along held-out rows."""
        return self.walk(self.drafter, self.held_out)

    @cached_property
    def newest_held_out(self) -> Acceptance:
        """The newest drafter's walk along held-out rows."""
        return self.walk(self.newest, self.held_out)

    @cached_property
    def newest_trained_on(self) -> Acceptance:
        """The newest drafter's walk along training rows."""
        return self.walk(self.newest, self.trained_on)

    @cached_property
    def decoded(self) -> Acceptance:
        """Decoding of a few held-out prompts."""
        prompts = held_out_prompts(self.data.validation, self.verifier.tokenizer, _PROMPTS)
        settings = EvaluationConfig(num_prompts=None, max_new_tokens=_ANSWER_TOKENS, compare=False)
        return evaluate(
            *(self.verifier.model(), self.drafter, self.verifier.tokenizer, prompts, settings),
            seed=self._config.seed,
            console=self._console,
        ).acceptance

    def shifted_shares(self, offsets: Sequence[int]) -> dict[int, float]:
        """Return, by offset, how often the first drafted token is the text's so much later."""
        right, counted = dict.fromkeys(offsets, 0), dict.fromkeys(offsets, 0)
        for row in self.held_out:
            starts = self.drafter.start_candidates(row).nonzero().flatten()
            if not len(starts):
                continue
            first = self.drafter.draft(row, starts)[:, 0]
            for offset in offsets:
                place = starts + 1 + offset
                inside = (place >= 0) & (place < len(row.input_ids))
                same = row.input_ids[place.clamp(0, len(row.input_ids) - 1)] == first
                right[offset] += int((same & inside).sum())
                counted[offset] += int(inside.sum())
        return {offset: right[offset] / max(counted[offset], 1) for offset in offsets}

    @cached_property
    def excess_surprise(self) -> float:
        """How much more the text surprises the verifier than its own words would, in nats a token.

        The mean of -log p(token) less the mean entropy of p, over supervised tokens: 0 on what the
        verifier sampled itself, below 0 on its most likely answers, above 0 on other people's.
        """
        total = count = 0.0
        for row in self.held_out:
            judged = row.loss_mask[1:].nonzero().flatten()
            log_p = self.verifier.head().logits(row.last[judged]).log_softmax(-1)
            said = log_p.gather(1, row.input_ids[judged + 1][:, None])[:, 0]
            entropy = -(log_p.exp() * log_p).sum(-1)
            total += float((-said - entropy).double().sum())
            count += len(judged)
        return total / max(count, 1.0)

    @cached_property
    def undraftable_share(self) -> float:
        """Share of the verifier's choices along held-out rows that the drafter cannot propose."""
        vocabulary = self.drafter.vocabulary
        if vocabulary.is_full:
            return 0.0
        missed = count = 0
        for row in self.held_out:
            judged = row.loss_mask[1:].nonzero().flatten()
            chosen = self.verifier.head().argmax(row.last[judged]).cpu()
            missed += int((~vocabulary.t2d[chosen]).sum())
            count += len(chosen)
        return missed / max(count, 1)

    def supervised_prompts(self) -> float:
        """Return the share of training samples whose first few tokens are supervised."""
        number = min(self._config.doctor.num_samples, len(self.data.train))
        masks = (self.data.train[i].loss_mask[:_FIRST_TOKENS] for i in range(number))
        return sum(bool(mask.any()) for mask in masks) / max(number, 1)

    def _row(self, sample: Sample, layer_ids: Sequence[int] | None) -> PackedBatch:
        """Return a sample as a row, cut where the run cut it already."""
        own = list(self.drafter.config.target_layer_ids or ())
        wanted = own if layer_ids is None else list(layer_ids)
        model = self.verifier.model()
        states = model.capture([sample.input_ids], sorted(set(wanted)), max_tokens=1)[0]
        order = [sorted(set(wanted)).index(i) for i in wanted]
        states = dataclasses.replace(states, aux=states.aux[:, order])
        empty = (torch.empty_like(states.aux), torch.empty_like(states.last))
        row = collate([(sample, states)], len(sample), aux=empty[0], last=empty[1])
        return row.to(self.verifier.device)

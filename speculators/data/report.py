"""What preparation found: counts a user should see before hours of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from speculators.data.roles import RoleTokens


@dataclass
class SourceCount:
    """Size of one source (or slice) after preparation."""

    samples: int = 0
    tokens: int = 0
    supervised: int = 0
    truncated: int = 0


@dataclass
class DataReport:
    """Numbers of one preparation.

    Attributes:
        num_rows: rows read.
        num_conversations: rows that became samples.
        num_samples: training rows, of both sides.
        num_train: samples on the training side.
        num_validation: samples on the validation side.
        validation_fraction: share of the conversations that was to validate; 0 where a file says
            which.
        num_groups: conversations that begin alike are one group, which stands on one side; 0
            where a file says what validates.
        largest_group: samples of the largest group.
        num_tokens: tokens of all samples.
        num_supervised: supervised tokens of all samples.
        num_truncated: rows that were cut or split.
        num_lost_tokens: tokens cut off or dropped for length.
        num_answers: assistant turns of these conversations.
        num_supervised_answers: of them, supervised in one of the rows before truncation.
        num_open_turns: supervised turns without an end token before truncation.
        num_duplicates: samples equal to an earlier one.
        num_fully_supervised: samples of rows without an unsupervised token.
        dropped: rows and turns left out, by reason.
        num_asked_for: of them, left out because a setting asks for it (duplicates, say).
        examples: a few of them, with file and line.
        roles: tokens and supervised tokens by role, before truncation.
        length_edges: lower edges of the histogram of lengths before truncation, in tokens.
        length_counts: rows per bin; the last bin holds those longer than the sequence.
        length_quantiles: tokens that 50, 90, 99 and 100 percent of the rows do not exceed.
        supervised_edges: lower edges of the histogram of supervised tokens of a row.
        supervised_counts: rows per bin.
        sequence_length: longest sample, in tokens.
        truncation: what became of longer rows (`data.truncation`).
        contaminated: conversations that hold an evaluation prompt, by the prompt's file.
        coverage_sizes: by share of the supervised training tokens (in percent): smallest draft
            vocabulary that covers it, in tokens.
        suggested_vocab_size: draft vocabulary for the highest of these shares, rounded up to a
            multiple of 128; 0 where nothing smaller than the whole vocabulary is worth it.
        licences: of the sources, where they are known.
        commits: of the hub data sets, where the hub names them.
        sources: size by source.
        method: how masks were made.
        not_shown: kinds of conversation that the template refuses, or shows only in part.
        num_split: conversations that became several rows, because the template renders earlier
            answers differently than when they were the last ones.
        seconds: what preparation took.
        finish_reasons: regenerated answers by why they ended.
        num_answer_tokens: their tokens.
        num_remembered_answers: of them, given at an earlier start.
        answers: file that holds every answer with its sampling parameters; empty without any.
    """

    num_rows: int = 0
    num_conversations: int = 0
    num_samples: int = 0
    num_train: int = 0
    num_validation: int = 0
    validation_fraction: float = 0.0
    num_groups: int = 0
    largest_group: int = 0
    num_tokens: int = 0
    num_supervised: int = 0
    num_truncated: int = 0
    num_lost_tokens: int = 0
    num_answers: int = 0
    num_supervised_answers: int = 0
    num_open_turns: int = 0
    num_duplicates: int = 0
    num_fully_supervised: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    num_asked_for: int = 0
    examples: list[str] = field(default_factory=list)
    roles: RoleTokens = field(default_factory=dict)
    length_edges: list[int] = field(default_factory=list)
    length_counts: list[int] = field(default_factory=list)
    length_quantiles: dict[str, int] = field(default_factory=dict)
    supervised_edges: list[int] = field(default_factory=list)
    supervised_counts: list[int] = field(default_factory=list)
    sources: dict[str, SourceCount] = field(default_factory=dict)
    sequence_length: int = 0
    truncation: str = ""
    contaminated: dict[str, int] = field(default_factory=dict)
    coverage_sizes: dict[str, int] = field(default_factory=dict)
    suggested_vocab_size: int = 0
    licences: dict[str, str] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)
    method: str = ""
    not_shown: list[str] = field(default_factory=list)
    num_split: int = 0
    seconds: float = 0.0
    finish_reasons: dict[str, int] = field(default_factory=dict)
    num_answer_tokens: int = 0
    num_remembered_answers: int = 0
    answers: str = ""

    @property
    def supervised_share(self) -> float:
        """Supervised tokens over all tokens."""
        return self.num_supervised / max(1, self.num_tokens)

    def drop(
        self,
        reason: str,
        example: str | None = None,
        count: int = 1,
        *,
        stops: bool = False,
        asked_for: bool = False,
    ) -> None:
        """Count something left out; the first examples of each reason are kept.

        Args:
            reason: kind of problem.
            example: file, line and detail.
            count: how often.
            stops: whether the preparation ends with an error because of it.
            asked_for: whether a setting asks for it.
        """
        self.num_asked_for += count if asked_for else 0
        seen = self.dropped.get(reason, 0)
        self.dropped[reason] = seen + count
        if example is not None and seen < 3:
            self.examples.append(example)

    def truncate(self, example: str, lost_tokens: int) -> None:
        """Count a row that was cut or split, and the tokens of it that no sample holds."""
        self.num_truncated += 1
        self.num_lost_tokens += lost_tokens

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataReport:
        """Rebuild a report from `to_dict`."""
        known = {f.name for f in dataclasses.fields(cls)}
        kept = {name: value for name, value in values.items() if name in known}
        roles = kept.get("roles", {})
        kept["roles"] = {role: (int(a), int(b)) for role, (a, b) in roles.items()}
        sources = kept.get("sources", {})
        kept["sources"] = {name: SourceCount(**count) for name, count in sources.items()}
        return cls(**kept)


def length_histogram(
    lengths: Int[np.ndarray, "row"], sequence_length: int
) -> tuple[list[int], list[int]]:
    """Return lower edges and counts of a histogram.

    Edges are powers of two up to the sequence length; a last bin holds what is longer.
    """
    edges = [0]
    edge = 16
    while edge < sequence_length:
        edges.append(edge)
        edge *= 2
    edges.append(sequence_length + 1)
    longest = int(lengths.max()) if len(lengths) else 0
    counts, _ = np.histogram(lengths, bins=[*edges, max(sequence_length + 2, longest + 1)])
    first = int(np.flatnonzero(counts)[0]) if counts.any() else 0
    return edges[first:], counts[first:].tolist()

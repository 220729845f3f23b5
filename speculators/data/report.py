"""What preparation found: counts a user should see before hours of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int
from rich.console import Console, Group, RenderableType
from rich.table import Table

from speculators.data.roles import RoleTokens

_BAR = 40


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
        num_tokens: tokens of all samples.
        num_supervised: supervised tokens of all samples.
        num_truncated: rows that were cut or split.
        num_lost_tokens: tokens cut off or dropped for length.
        num_open_turns: supervised turns without an end token before truncation.
        num_duplicates: samples equal to an earlier one.
        num_fully_supervised: samples without an unsupervised token.
        dropped: rows and turns left out, by reason.
        examples: a few of them, with file and line.
        roles: tokens and supervised tokens by role, before truncation.
        length_edges: lower edges of the histogram of lengths before truncation, in tokens.
        length_counts: rows per bin; the last bin holds those longer than the sequence.
        sequence_length: longest sample, in tokens.
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
    num_tokens: int = 0
    num_supervised: int = 0
    num_truncated: int = 0
    num_lost_tokens: int = 0
    num_open_turns: int = 0
    num_duplicates: int = 0
    num_fully_supervised: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    roles: RoleTokens = field(default_factory=dict)
    length_edges: list[int] = field(default_factory=list)
    length_counts: list[int] = field(default_factory=list)
    sources: dict[str, SourceCount] = field(default_factory=dict)
    sequence_length: int = 0
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
        self, reason: str, example: str | None = None, count: int = 1, *, stops: bool = False
    ) -> None:
        """Count something left out; the first examples of each reason are kept.

        Args:
            reason: kind of problem.
            example: file, line and detail.
            count: how often.
            stops: whether the preparation ends with an error because of it.
        """
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


def report_view(report: DataReport, console_width: int = 100) -> RenderableType:
    """Return the report as rich tables."""
    parts: list[RenderableType] = [_totals(report), _lengths(report, min(_BAR, console_width // 3))]
    if report.roles:
        parts.insert(1, _roles(report))
    if len(report.sources) > 1:
        parts.append(_sources(report))
    if report.coverage_sizes:
        parts.append(_vocabulary(report))
    if report.dropped:
        parts.append(_dropped(report))
    return Group(*parts)


def print_report(report: DataReport, console: Console | None = None) -> None:
    """Print the report."""
    console = console or Console()
    console.print(report_view(report, console.width))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index > 0)
    return table


def _totals(report: DataReport) -> Table:
    table = _table("Data", "", "")
    table.show_header = False
    lines = {
        "rows read": f"{report.num_rows:,}",
        "conversations": f"{report.num_conversations:,}",
        "samples": f"{report.num_samples:,} (train {report.num_train:,}, "
        f"validation {report.num_validation:,})",
        "tokens": f"{report.num_tokens:,}",
        "supervised": f"{report.num_supervised:,} ({report.supervised_share:.1%})",
        "truncated": f"{report.num_truncated:,} rows, {report.num_lost_tokens:,} tokens lost",
        "duplicates": f"{report.num_duplicates:,}",
        "loss mask by": report.method,
    }
    if report.not_shown:
        lines["template without"] = ", ".join(report.not_shown)
    if report.num_split:
        lines["several rows for"] = f"{report.num_split:,} conversations (history is rewritten)"
    if report.finish_reasons:
        lines["answers"] = _answers(report)
    for name, count in report.contaminated.items():
        lines[f"hold a prompt of {name}"] = f"{count:,} conversations"
    if report.num_open_turns:
        lines["answers without end"] = f"{report.num_open_turns:,}"
    for name, value in lines.items():
        table.add_row(name, value)
    return table


def _answers(report: DataReport) -> str:
    reasons = ", ".join(f"{why} {n:,}" for why, n in sorted(report.finish_reasons.items()))
    known = report.num_remembered_answers
    earlier = f", {known:,} from an earlier start" if known else ""
    total = sum(report.finish_reasons.values())
    return f"{total:,} ({reasons}), {report.num_answer_tokens:,} tokens{earlier}"


def _roles(report: DataReport) -> Table:
    table = _table("Supervised by role", "role", "tokens", "supervised", "share")
    for role, (tokens, supervised) in sorted(report.roles.items()):
        share = f"{supervised / max(1, tokens):.1%}"
        table.add_row(role, f"{tokens:,}", f"{supervised:,}", share)
    return table


def _lengths(report: DataReport, width: int) -> Table:
    table = _table("Length of rows before truncation", "tokens", "rows", "")
    table.columns[2].justify = "left"
    most = max([1, *report.length_counts])
    for index, (edge, count) in enumerate(
        zip(report.length_edges, report.length_counts, strict=True)
    ):
        last = index + 1 == len(report.length_edges)
        label = f"{edge}+" if last else f"{edge}-{report.length_edges[index + 1] - 1}"
        table.add_row(label, f"{count:,}", "█" * round(width * count / most))
    return table


def _sources(report: DataReport) -> Table:
    table = _table("Sources", "source", "samples", "tokens", "supervised", "cut")
    for name, count in sorted(report.sources.items()):
        values = (count.samples, count.tokens, count.supervised, count.truncated)
        table.add_row(name, *(f"{value:,}" for value in values))
    return table


def _vocabulary(report: DataReport) -> Table:
    table = _table("Draft vocabulary by coverage", "supervised tokens", "most frequent tokens")
    for share, size in report.coverage_sizes.items():
        table.add_row(f"{share} %", f"{size:,}")
    if report.suggested_vocab_size:
        table.add_row("suggested", f"speculator.draft_vocab_size={report.suggested_vocab_size}")
    return table


def _dropped(report: DataReport) -> Table:
    table = _table("Left out", "reason", "count")
    for reason, count in sorted(report.dropped.items(), key=lambda item: -item[1]):
        table.add_row(reason, f"{count:,}")
    return table

"""`report.json` and `report.html`: what preparation found, on one page that loads nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jinja2

from speculators.data.coloured import Excerpt
from speculators.data.coverage import tau_cap
from speculators.data.remarks import remarks
from speculators.data.report import DataReport

REPORT_JSON, REPORT_HTML = "report.json", "report.html"
NUM_DRAFT_TOKENS = 7
"""Tokens per draft that the ceiling of the acceptance length is shown for."""
_COLUMN_PIXELS = 120
_LABEL_PIXELS = 72
_WIDTH, _LEFT, _TOP, _BOTTOM = 640, 52, 30, 176


def write_report(
    folder: Path,
    report: DataReport,
    name: str,
    *,
    samples: Sequence[Excerpt] = (),
    facts: Sequence[tuple[str, str]] = (),
) -> None:
    """Write both files into a folder.

    Args:
        folder: that of the prepared data.
        report: the numbers.
        name: of the data, for the heading.
        samples: some of them, as text with supervised stretches.
        facts: lines on how the data were made.
    """
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False)
    # A surrogate in somebody's text must not cost the whole preparation.
    (folder / REPORT_JSON).write_bytes(f"{text}\n".encode("utf-8", "replace"))
    page = render(report, name, samples=samples, facts=facts)
    (folder / REPORT_HTML).write_bytes(page.encode("utf-8", "replace"))


def render(
    report: DataReport,
    name: str,
    *,
    samples: Sequence[Excerpt] = (),
    facts: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the page; arguments as in `write_report`."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("speculators.data").joinpath("report.html.j2")
    supervised = max(1, report.num_supervised)
    return environment.from_string(source.read_text(encoding="utf-8")).render(
        name=name,
        report=report,
        remarks=remarks(report),
        tiles=_tiles(report),
        lengths=_columns(report.length_edges, report.length_counts, report.sequence_length),
        answers=_columns(report.supervised_edges, report.supervised_counts, report.sequence_length),
        roles=[
            (role, tokens, marked, marked / max(1, tokens))
            for role, (tokens, marked) in sorted(report.roles.items())
        ],
        sources=[
            (source, count, count.supervised / supervised)
            for source, count in sorted(report.sources.items())
        ],
        curve=_curve(report.coverage_sizes),
        ceilings=_ceilings(report),
        dropped=_dropped(report),
        samples=samples,
        facts=[*facts, *_facts(report)],
    )


def _tiles(report: DataReport) -> list[tuple[str, str, str]]:
    left_out = sum(report.dropped.values())
    median = report.length_quantiles.get("50", 0)
    answers = f"{report.num_supervised:,} tokens"
    if report.num_answers:
        answers = f"{report.num_supervised_answers:,} of {report.num_answers:,} answers"
    return [
        ("Conversations", f"{report.num_conversations:,}", f"of {report.num_rows:,} rows read"),
        ("Samples", f"{report.num_samples:,}", f"{report.num_duplicates:,} repeat an earlier one"),
        (
            "Validation",
            f"{report.num_validation:,}",
            f"{report.num_validation / max(1, report.num_samples):.1%} of the samples",
        ),
        ("Tokens", f"{report.num_tokens:,}", f"{median:,} in the median row"),
        ("Supervised", f"{report.supervised_share:.1%}", answers),
        ("Truncated", f"{report.num_truncated:,}", f"{report.num_lost_tokens:,} tokens lost"),
        ("Left out", f"{left_out:,}", "rows and turns, reasons below"),
    ]


class Column(NamedTuple):
    """A column of a histogram: label, rows, height, share of all, whether beyond the sequence."""

    label: str
    count: int
    pixels: int
    share: float
    late: bool


def _columns(edges: Sequence[int], counts: Sequence[int], limit: int) -> list[Column]:
    """Return the columns up to the last one that holds something."""
    filled = max((place for place, count in enumerate(counts) if count), default=-1) + 1
    most, total = max([1, *counts]), max(1, sum(counts))
    columns = []
    for place, (edge, count) in enumerate(zip(edges[:filled], counts, strict=False)):
        last = place + 1 == len(edges)
        label = f"{edge:,}+" if last else f"{edge:,}\u2013{edges[place + 1] - 1:,}"
        pixels = max(round(_COLUMN_PIXELS * count / most), 2 if count else 0)
        columns.append(Column(label, count, pixels, count / total, edge > limit))
    return columns


class Point(NamedTuple):
    """A point of the coverage curve: its place, what it says, whether there is room to say it."""

    x: float
    y: float
    size: int
    share: str
    has_room: bool


def _curve(sizes: dict[str, int]) -> list[Point]:
    """Return the points of the coverage curve; sizes stand on a logarithmic axis."""
    if not sizes or max(sizes.values()) < 2:
        return []
    low, high = (math.log(f(sizes.values())) for f in (min, max))
    least = min(float(share) for share in sizes)
    points: list[Point] = []
    labelled = -_WIDTH
    for share, size in sizes.items():
        across = (math.log(size) - low) / max(1e-9, high - low)
        up = (float(share) - least) / max(1e-9, 100 - least)
        x = _LEFT + across * (_WIDTH - 2 * _LEFT)
        y = _BOTTOM - up * (_BOTTOM - _TOP)
        has_room = x - labelled >= _LABEL_PIXELS
        labelled = x if has_room else labelled
        points.append(Point(round(x, 1), round(y, 1), size, share, has_room))
    return points


def _ceilings(report: DataReport) -> list[tuple[str, int, float]]:
    """Return share, size and highest acceptance length of draft vocabularies."""
    return [
        (share, size, tau_cap(float(share) / 100, NUM_DRAFT_TOKENS))
        for share, size in report.coverage_sizes.items()
    ]


def _dropped(report: DataReport) -> list[tuple[str, int, list[str]]]:
    """Return reasons, the most frequent first, with their examples."""
    by_reason: dict[str, list[str]] = {reason: [] for reason in report.dropped}
    longest_first = sorted(by_reason, key=len, reverse=True)
    for line in report.examples:
        reason = next((reason for reason in longest_first if reason in line), None)
        by_reason.get(reason or "", []).append(line)
    ordered = sorted(report.dropped.items(), key=lambda item: -item[1])
    return [(reason, count, by_reason[reason]) for reason, count in ordered]


def _facts(report: DataReport) -> Iterator[tuple[str, str]]:
    yield "loss mask by", report.method
    if report.num_groups:
        yield (
            "split",
            f"{report.validation_fraction:.0%} of the conversations asked for; "
            f"{report.num_groups:,} groups of conversations that begin alike, the largest of "
            f"{report.largest_group:,} samples",
        )
    for title, values in (
        ("licences", report.licences),
        ("commits", report.commits),
        ("hold evaluation prompts", report.contaminated),
        ("longest rows", {f"{p} %": f"{n:,} tokens" for p, n in report.length_quantiles.items()}),
    ):
        if values:
            yield title, ", ".join(f"{key}: {value}" for key, value in values.items())
    if report.not_shown:
        yield "template without", ", ".join(report.not_shown)
    if report.num_split:
        yield (
            "several rows for",
            f"{report.num_split:,} conversations: the template shows earlier answers otherwise "
            "than the verifier wrote them",
        )
    if report.num_open_turns:
        yield "answers without end", f"{report.num_open_turns:,}"
    yield "took", f"{report.seconds:,.1f} s"

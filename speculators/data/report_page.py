"""`report.json` and `report.html`: what preparation found, on one page that loads nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2

from speculators.data.coloured import Stretch
from speculators.data.report import DataReport

REPORT_JSON, REPORT_HTML = "report.json", "report.html"
_COLUMN_PIXELS = 120
_LABEL_PIXELS = 48
_WIDTH, _LEFT, _TOP, _BOTTOM = 640, 40, 30, 180


def write_report(
    folder: Path,
    report: DataReport,
    name: str,
    *,
    samples: Sequence[Sequence[Stretch]] = (),
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
    (folder / REPORT_JSON).write_text(text + "\n", encoding="utf-8")
    page = render(report, name, samples=samples, facts=facts)
    # A surrogate in somebody's text must not cost the whole preparation.
    (folder / REPORT_HTML).write_bytes(page.encode("utf-8", "replace"))


def render(
    report: DataReport,
    name: str,
    *,
    samples: Sequence[Sequence[Stretch]] = (),
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
        tiles=_tiles(report),
        lengths=_columns(report),
        roles=[
            (role, tokens, marked, marked / max(1, tokens))
            for role, (tokens, marked) in sorted(report.roles.items())
        ],
        sources=[
            (source, count, count.supervised / supervised)
            for source, count in sorted(report.sources.items())
        ],
        curve=_curve(report.coverage_sizes),
        dropped=sorted(report.dropped.items(), key=lambda item: -item[1]),
        samples=samples,
        facts=[*facts, *_facts(report)],
    )


def _tiles(report: DataReport) -> list[tuple[str, str, str]]:
    left_out = sum(report.dropped.values())
    return [
        ("Conversations", f"{report.num_conversations:,}", f"of {report.num_rows:,} rows read"),
        (
            "Samples",
            f"{report.num_samples:,}",
            f"{report.num_train:,} train, {report.num_validation:,} validation",
        ),
        ("Tokens", f"{report.num_tokens:,}", f"{report.num_duplicates:,} repeated samples"),
        ("Supervised", f"{report.supervised_share:.1%}", f"{report.num_supervised:,} tokens"),
        ("Truncated", f"{report.num_truncated:,}", f"{report.num_lost_tokens:,} tokens lost"),
        ("Left out", f"{left_out:,}", "rows and turns, by reason below"),
    ]


def _columns(report: DataReport) -> list[tuple[str, int, int, bool]]:
    most = max([1, *report.length_counts])
    return [
        (f"{edge:,}+", count, round(_COLUMN_PIXELS * count / most), edge > report.sequence_length)
        for edge, count in zip(report.length_edges, report.length_counts, strict=True)
    ]


def _curve(sizes: dict[str, int]) -> list[tuple[float, float, int, str, bool]]:
    """Return x, y, size, share of each point, and whether there is room for its labels.

    Sizes stand on a logarithmic axis.
    """
    if not sizes or max(sizes.values()) < 2:
        return []
    low, high = (math.log(f(sizes.values())) for f in (min, max))
    least = min(float(share) for share in sizes)
    points: list[tuple[float, float, int, str, bool]] = []
    labelled = -_WIDTH
    for share, size in sizes.items():
        across = (math.log(size) - low) / max(1e-9, high - low)
        up = (float(share) - least) / max(1e-9, 100 - least)
        x = _LEFT + across * (_WIDTH - 2 * _LEFT)
        y = _BOTTOM - up * (_BOTTOM - _TOP)
        has_room = x - labelled >= _LABEL_PIXELS
        labelled = x if has_room else labelled
        points.append((round(x, 1), round(y, 1), size, share, has_room))
    return points


def _facts(report: DataReport) -> list[tuple[str, str]]:
    facts = [("loss mask by", report.method)]
    for title, values in (
        ("licences", report.licences),
        ("commits", report.commits),
        ("hold evaluation prompts", report.contaminated),
    ):
        if values:
            facts.append((title, ", ".join(f"{key}: {value}" for key, value in values.items())))
    if report.not_shown:
        facts.append(("template without", ", ".join(report.not_shown)))
    if report.num_split:
        facts.append(("several rows for", f"{report.num_split:,} conversations"))
    if report.num_open_turns:
        facts.append(("answers without end", f"{report.num_open_turns:,}"))
    facts.append(("took", f"{report.seconds:,.1f} s"))
    return facts

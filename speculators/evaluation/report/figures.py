"""Charts of a run: curves over steps, acceptance per position."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter, StrMethodFormatter

from speculators.evaluation.report.chart import Chart
from speculators.evaluation.report.run_files import Line, RunFiles, is_validation
from speculators.evaluation.report.speed_figures import speed_charts
from speculators.evaluation.report.svg import MUTED, SERIES, figure

_MAX_POINTS = 300
_LOSS_TERMS = r"(ce|kl|reverse_kl|js|tv|lk_alpha|lk_hybrid)"


@dataclass(frozen=True)
class _Curve:
    """Which metrics share a chart.

    Attributes:
        pattern: full match of a metric's name; a group in it becomes the label.
        log: logarithmic axis where all values are positive.
        percent: values are shares.
    """

    name: str
    title: str
    pattern: str
    note: str = ""
    log: bool = False
    percent: bool = False
    labels: dict[str, str] = field(default_factory=dict)


_CURVES = (
    _Curve(
        "acceptance_length",
        "Acceptance length",
        r"(?:uniform_|block_)?acceptance_length",
        "Tokens per verifier call, bonus counted. The walk visits positions as decoding does; "
        "averages over all starts or over training's blocks weight them differently.",
        labels={
            "acceptance_length": "walk",
            "uniform_acceptance_length": "all starts",
            "block_acceptance_length": "blocks of training",
        },
    ),
    _Curve("loss", "Loss", r"loss", "What is minimised: the weighted sum of the terms."),
    _Curve(
        "loss_terms",
        "Loss terms",
        rf"(?:loss[_/.])?{_LOSS_TERMS}(?:[_/.]loss)?",
        "Each term as it is, without its weight.",
    ),
    _Curve(
        "coverage",
        "Coverage",
        r"coverage|on_policy_share",
        "Coverage: response tokens that were a target at least once in their row. On-policy share: "
        "response tokens the verifier would have chosen itself.",
        percent=True,
    ),
    _Curve("learning_rate", "Learning rate", r"learning_rate|lr"),
    _Curve("gradient_norm", "Gradient norm", r"grad(?:ient)?_norm", "Before clipping.", log=True),
    _Curve("speed", "Speed", r"(?:mean_)?tokens_per_second", "Training tokens per second."),
)


def charts(files: RunFiles) -> list[Chart]:
    """Return every chart the run has numbers for."""
    found = [_draw(curve, [*files.metrics, *files.timing]) for curve in _CURVES]
    speeds = speed_charts(files.evaluation)
    drawn = (_positions(files), *speeds, *found, _forecast(files), _lengths(files))
    return [chart for chart in drawn if chart is not None]


def _draw(curve: _Curve, lines: Sequence[Line]) -> Chart | None:
    series: dict[tuple[bool, str], list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if re.fullmatch(curve.pattern, name) and _is_finite(value):
                series.setdefault((is_validation(line), name), []).append((line["step"], value))
    if not any(len(points) > 1 for points in series.values()):
        return None
    with figure() as (drawing, axes):
        for index, ((validation, name), points) in enumerate(sorted(series.items())):
            label = _label(curve, name, validation, {v for v, n in series if n == name})
            _line(axes, points, SERIES[index % len(SERIES)], label, validation)
        _finish(axes, curve, [v for points in series.values() for _, v in points])
        if len(series) > 1:
            axes.legend(loc="best")
        return Chart(curve.name, curve.title, curve.note, drawing)


def _label(curve: _Curve, name: str, validation: bool, kinds: set[bool]) -> str:
    match = re.fullmatch(curve.pattern, name)
    word = match.group(1) if match and match.re.groups and match.group(1) else name
    word = curve.labels.get(word, word.replace("_", " "))
    return f"{word}, validation" if validation and len(kinds) > 1 else word


def _line(
    axes: Axes, points: list[tuple[int, float]], color: str, label: str, validation: bool
) -> None:
    steps, values = np.array([s for s, _ in points]), np.array([v for _, v in points], float)
    if len(steps) > _MAX_POINTS:
        # Means over equal stretches: a faithful line, and a page that stays small.
        parts = np.array_split(np.arange(len(steps)), _MAX_POINTS)
        steps = np.array([steps[part].mean() for part in parts])
        values = np.array([values[part].mean() for part in parts])
    marker = "o" if (validation and len(steps) <= 40) or len(steps) == 1 else None
    axes.plot(steps, values, color=color, label=label, marker=marker, markersize=3.5)


def _finish(axes: Axes, curve: _Curve, values: Sequence[float]) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if curve.log and min(values) > 0 and max(values) / min(values) > 20:
        axes.set_yscale("log")
        return
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if curve.percent:
        axes.set_ylim(-0.02, 1.04)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif curve.name == "learning_rate":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    elif max(values) >= 1000:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if min(values) >= 0 and curve.name in {"learning_rate", "speed"}:
        axes.set_ylim(bottom=0)


def _positions(files: RunFiles) -> Chart | None:
    sources: list[tuple[str, list[float]]] = []
    decoded = files.evaluation.get("acceptance_per_position") or files.result.get(
        "acceptance_per_position"
    )
    walked = files.validation().get("acceptance_per_position")
    for label, shares in (("decoded", decoded), ("walk on validation rows", walked)):
        if isinstance(shares, list) and shares and all(map(_is_finite, shares)):
            sources.append((label, shares))
    if not sources:
        return None
    count = max(len(shares) for _, shares in sources)
    width = 0.8 / len(sources)
    with figure() as (drawing, axes):
        for index, (label, shares) in enumerate(sources):
            offset = (index - (len(sources) - 1) / 2) * width
            places = [k + offset for k in range(1, len(shares) + 1)]
            bars = axes.bar(places, shares, width * 0.92, color=SERIES[index], label=label)
            if index == 0 and count <= 8:
                texts = [f"{share:.0%}" for share in shares]
                axes.bar_label(bars, texts, padding=2, fontsize=7.5, color=MUTED)
        axes.set_xticks(range(1, count + 1))
        axes.set_xlabel("drafted token")
        axes.set_ylim(0, min(1.0, max(max(shares) for _, shares in sources) * 1.18) or 1.0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(visible=False, axis="x")
        if len(sources) > 1:
            axes.legend(loc="upper right")
        note = "Share of drafts whose tokens up to this one were all accepted; one plus the sum is "
        return Chart("per_position", "Acceptance per position", note + "tau.", drawing)


def _forecast(files: RunFiles) -> Chart | None:
    """Draw what each validation expected of the last one, with what was measured."""
    lines = [line for line in files.metrics if is_validation(line)]
    measured = [(line["step"], line.get("acceptance_length")) for line in lines]
    made = [line for line in lines if _is_finite(line.get("forecast_acceptance_length"))]
    if not made or not all(_is_finite(value) for _, value in measured):
        return None
    steps = [line["step"] for line in made]
    low, high = zip(*(line["forecast_acceptance_length_ci95"] for line in made), strict=True)
    with figure() as (drawing, axes):
        expected = [line["forecast_acceptance_length"] for line in made]
        reach = np.abs(np.array([low, high]) - expected)  # bars, which a single forecast shows too
        axes.errorbar(
            steps,
            expected,
            reach,
            color=SERIES[1],
            label="expected at the end, 95 %",
            marker="o",
            markersize=3.5,
            elinewidth=1,
            capsize=2,
        )
        axes.plot(*zip(*measured, strict=True), color=SERIES[0], label="measured (walk)")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.legend(loc="best")
        note = "At each step: the acceptance length expected of the last validation."
        return Chart("forecast", "Forecast", note, drawing)


def _lengths(files: RunFiles) -> Chart | None:
    edges = files.data_report.get("length_edges")
    counts = files.data_report.get("length_counts")
    if not (isinstance(edges, list) and isinstance(counts, list) and 1 < len(edges) == len(counts)):
        return None
    with figure() as (drawing, axes):
        axes.bar(range(len(counts)), counts, 0.9, color=SERIES[0])
        axes.set_xticks(range(len(edges)), [f"{edge:,}" for edge in edges])
        axes.set_xlabel("tokens, from")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(visible=False, axis="x")
        return Chart("lengths", "Length of the rows", "Training and validation rows.", drawing)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

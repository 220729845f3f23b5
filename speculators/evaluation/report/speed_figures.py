"""Charts of speed: how many tokens to draft, and a server with and without drafting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from speculators.evaluation.report.chart import Chart
from speculators.evaluation.report.svg import MUTED, SERIES, figure


def speed_charts(evaluation: Mapping[str, Any]) -> list[Chart]:
    """Return the charts there are numbers for.

    Args:
        evaluation: `evaluation.json`.
    """
    charts = []
    if best := evaluation.get("best_k"):
        charts.append(_best(best["batches"]))
    levels = (evaluation.get("served") or {}).get("levels") or []
    if len(levels) > 1:
        note = "Answer tokens of all requests per second."
        charts.append(_served("throughput", "Throughput", note, levels, "tokens_per_second"))
        note = "Milliseconds from token to token of one answer, mean over answers."
        charts.append(_served("latency", "Inter-token latency", note, levels, "inter_token_ms"))
    return charts


def _best(batches: Sequence[Mapping[str, Any]]) -> Chart:
    with figure() as (drawing, axes):
        for index, batch in enumerate(batches):
            color, speedups = SERIES[index % len(SERIES)], batch["speedups"]
            places = range(1, len(speedups) + 1)
            axes.plot(places, speedups, color=color, label=f"{batch['batch_size']} at once")
            if count := batch["recommended"]:
                axes.plot([count], [speedups[count - 1]], "o", color=color, markersize=6)
        axes.axhline(1.0, color=MUTED, linewidth=1, linestyle="--")
        axes.set_xlabel("drafted tokens")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.legend(loc="best")
    note = "From measured times and acceptance per position; a dot marks what is recommended."
    return Chart("best_k", "Expected speed-up", note, drawing)


def _served(
    name: str, title: str, note: str, levels: Sequence[Mapping[str, Any]], key: str
) -> Chart:
    with figure() as (drawing, axes):
        for index, (side, label) in enumerate((("speculative", "drafting"), ("plain", "plain"))):
            points = [
                (level["concurrency"], value)
                for level in levels
                if side in level and (value := _number(level[side][key])) is not None
            ]
            if points:
                _line(axes, points, SERIES[index], label)
        axes.set_xlabel("requests at once")
        axes.set_ylim(bottom=0)
        axes.legend(loc="best")
    return Chart(name, title, note, drawing)


def _line(axes: Axes, points: Sequence[tuple[int, float]], color: str, label: str) -> None:
    places, values = zip(*points, strict=True)
    axes.plot(places, values, color=color, label=label, marker="o", markersize=3.5)


def _number(value: Any) -> float | None:
    return value["mean"] if isinstance(value, Mapping) else value

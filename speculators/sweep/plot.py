"""A leaderboard drawn: what was asked on one axis, the objective on the other, bars over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from speculators.evaluation.report.svg import MUTED, SERIES, figure
from speculators.sweep.leaderboard import Entry, Leaderboard
from speculators.sweep.table import short_keys, short_label

_MOST_ENTRIES = 40
_FAR = 20
"""Values of which the largest is so many times the smallest stand on a logarithmic axis."""


def draw(board: Leaderboard) -> Figure | None:
    """Return the plot; None when no run has finished.

    One column of numbers makes a curve; everything else makes a list, best on top. Bars are one
    sample standard deviation over seeds, small marks are the runs.
    """
    entries = [entry for entry in board.entries if entry.spread is not None][:_MOST_ENTRIES]
    if not entries:
        return None
    places = _numbers(board, entries)
    height = 2.8 if places is not None else max(1.6, 0.9 + 0.28 * len(entries))
    with figure(width=5.6, height=height) as (drawing, axes):
        if places is not None:
            _curve(axes, board, entries, places)
        else:
            _list(axes, board, entries)
        return drawing


def _numbers(board: Leaderboard, entries: Sequence[Entry]) -> list[float] | None:
    """Return where entries stand on an axis of numbers, if there is one."""
    if len(board.columns) != 1 or len(entries) < 2:
        return None
    try:
        return [float(entry.labels[board.columns[0]]) for entry in entries]
    except ValueError:
        return None


def _curve(
    axes: Axes, board: Leaderboard, entries: Sequence[Entry], places: Sequence[float]
) -> None:
    order = sorted(range(len(entries)), key=lambda index: places[index])
    xs, ordered = [places[index] for index in order], [entries[index] for index in order]
    means, bars = _means(ordered), _bars(ordered)
    axes.errorbar(xs, means, yerr=bars, color=SERIES[0], marker="o", markersize=4, capsize=3)
    for x, entry in zip(xs, ordered, strict=True):
        values = list(entry.by_seed.values())
        axes.plot([x] * len(values), values, "_", color=MUTED, markersize=6)
    if min(xs) > 0 and max(xs) / min(xs) >= _FAR:
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.set_xlabel(board.columns[0])
    axes.set_ylabel(board.objective)


def _list(axes: Axes, board: Leaderboard, entries: Sequence[Entry]) -> None:
    rows = range(len(entries))
    means, bars = _means(entries), _bars(entries)
    axes.errorbar(
        means, rows, xerr=bars, fmt="o", color=SERIES[0], markersize=4, capsize=3, linestyle="none"
    )
    for row, entry in zip(rows, entries, strict=True):
        values = list(entry.by_seed.values())
        axes.plot(values, [row] * len(values), "|", color=MUTED, markersize=6)
    names = short_keys(board.columns)
    several = len(names) > 1
    texts = [
        ", ".join(
            f"{name}={short_label(entry.labels[key])}"
            if several
            else short_label(entry.labels[key])
            for name, key in zip(names, board.columns, strict=True)
        )
        for entry in entries
    ]
    axes.set_yticks(rows, texts)
    if not several:
        axes.set_ylabel("".join(names))
    axes.invert_yaxis()
    axes.set_xlabel(board.objective)


def _means(entries: Sequence[Entry]) -> list[float]:
    return [math.nan if entry.spread is None else entry.spread.mean for entry in entries]


def _bars(entries: Sequence[Entry]) -> list[float]:
    spreads = [entry.spread for entry in entries]
    return [0.0 if s is None or s.deviation is None else s.deviation for s in spreads]

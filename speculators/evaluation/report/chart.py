"""A finished chart."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chart:
    """A finished chart.

    Attributes:
        name: file name without suffix, unique.
        title: heading.
        note: one sentence on what to see.
        drawing: the figure.
    """

    name: str
    title: str
    note: str
    drawing: Figure

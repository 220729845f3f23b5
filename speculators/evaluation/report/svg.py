"""Figures as inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#20262e"
MUTED = "#6a7380"
GRID = "#e3e6eb"
SERIES = ("#2f6fde", "#d9700f", "#1d9a62", "#b0418f", "#7a5cd6", "#8a6d00")
"""Colours of the light page; each stands for a CSS variable in SVG."""

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    **{color: f"--series-{index}" for index, color in enumerate(SERIES, start=1)},
}
_STYLE: Any = {
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": ["sans-serif"],
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@contextmanager
def figure(width: float = 4.6, height: float = 2.5) -> Iterator[tuple[Figure, Axes]]:
    """Give an empty figure in the page's style; sizes in inches, small enough for a phone."""
    with mpl.rc_context(_STYLE):
        drawing = Figure(figsize=(width, height), layout="constrained")
        yield drawing, drawing.add_subplot()


def to_svg(drawing: Figure, name: str) -> str:
    """Return the figure as an `<svg>` element for HTML, without anything a browser would fetch.

    Args:
        drawing: the figure.
        name: unique in the page; prefixes every id, so that clip paths cannot be confused.
    """
    buffer = io.StringIO()
    # The hash salt makes the file a function of its content: equal runs give equal reports.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(<svg\b[^>]*?)\s+width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?)\s+height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    # Styles carry fixed font families; the page's own font is the readable one.
    text = re.sub(r"font-family:[^;\"]*;?", "", text)
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--font)", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return text


def to_png(drawing: Figure, title: str, path: Path) -> None:
    """Write the figure on white and title it for good: the page prints its titles itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        drawing.suptitle(title, fontsize=10)
        drawing.savefig(path, format="png", dpi=160, facecolor="white", metadata={"Software": None})

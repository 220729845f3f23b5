"""Tables of an evaluation's JSON: the same for Markdown, the report and the model card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_PARTS = (
    ("suites", "Acceptance by suite", "suite"),
    ("categories", "Acceptance by category", "category"),
    ("prompt_lengths", "Acceptance by length of the prompt", "prompt tokens"),
    ("context_lengths", "Acceptance by tokens before the draft", "tokens before"),
)


@dataclass(frozen=True)
class Grid:
    """A table of texts.

    Attributes:
        name: short, unique in a page.
        title: heading.
        header: of the columns; the first is text, the others are numbers.
        rows: as long as the header.
        note: one sentence below it, or empty.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def acceptance_grids(found: Mapping[str, Any]) -> list[Grid]:
    """Return acceptance in all, by suite, by category and by length; empty parts are left out.

    Args:
        found: `evaluation.json`, or as much of it as there is.
    """
    if "acceptance_length" not in found:
        return []
    grids = [_grid("acceptance", "Acceptance", "prompts of", {"all": found})]
    for key, title, column in _PARTS:
        parts = found.get(key) or {}
        # One length says nothing that the whole does not.
        if parts and not (key.endswith("lengths") and len(parts) < 2):
            note = ""
            if key == "suites" and found.get("mean_of_suites") is not None:
                note = f"Mean of the suites: acceptance length {found['mean_of_suites']:.3f}."
            grids.append(_grid(key, title, column, parts, note))
    return grids


def _grid(
    name: str, title: str, column: str, parts: Mapping[str, Mapping[str, Any]], note: str = ""
) -> Grid:
    timed = any(part.get("speedup") is not None for part in parts.values())
    header = [column, "prompts", "acceptance length", "95 % interval", "rate"]
    header += ["speed-up", "95 % interval"] if timed else []
    rows = tuple(_row(label, part, timed) for label, part in parts.items())
    return Grid(name, title, (*header, "per position"), rows, note)


def _row(label: str, part: Mapping[str, Any], timed: bool) -> tuple[str, ...]:
    cells = [
        label,
        str(part["num_prompts"]),
        f"{part['acceptance_length']:.3f}",
        interval(part.get("acceptance_length_ci95")),
        f"{part['acceptance_rate']:.2%}",
    ]
    if timed:
        ratio = part.get("speedup")
        cells += ["" if ratio is None else f"{ratio:.2f}", interval(part.get("speedup_ci95"))]
    cells.append(" ".join(f"{share:.3f}" for share in part["acceptance_per_position"]))
    return tuple(cells)


def interval(ends: Sequence[float] | None, form: str = "{:.2f} to {:.2f}") -> str:
    """Return an interval in words; empty when there is none."""
    return "" if ends is None else form.format(*ends)


def markdown(grid: Grid) -> str:
    """Return a table in Markdown, without its title."""
    note = f"\n\n{grid.note}" if grid.note else ""
    return markdown_table(grid.header, grid.rows) + note


def markdown_table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows of cells in Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")

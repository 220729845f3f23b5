"""`speculators evaluate compare=[A,B]`: what differs between evaluations of the same prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from speculators.config.schema import Config
from speculators.console import open_console
from speculators.conversion.durable import replace_text
from speculators.errors import DataError
from speculators.evaluation.paired import PAIRED, Comparison, Difference, Evaluated, compare
from speculators.evaluation.tables import Grid, interval, markdown
from speculators.launch.provenance import write_provenance
from speculators.launch.result import write_json

RESULT_FILE = "evaluation.json"


def compare_results(config: Config, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Compare evaluations with the first of them; show it, write it, and return it.

    Raises:
        DataError: a file that is no evaluation, or evaluations that do not compare.
    """
    paths = [Path(path) for path in config.compare or ()]
    first, *others = (
        Evaluated.read(name, _read(path)) for name, path in zip(_names(paths), paths, strict=True)
    )
    found = [compare(first, other, seed=config.seed) for other in others]
    console = open_console()
    for one in found:
        _show(one, console)
    console.print(first.values["definition"], style="dim")
    console.print(PAIRED, style="dim")
    folder = Path(config.output_dir)
    write_provenance(folder, config, argv)
    values = {"comparisons": [one.to_dict() for one in found]}
    write_json(folder / "comparison.json", values)
    replace_text(folder / "comparison.md", _page(found))
    console.print(f"written to {folder}: comparison.json, comparison.md", soft_wrap=True)
    return values


def _read(path: Path) -> dict[str, Any]:
    file = path / RESULT_FILE if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"compare: {file}: cannot be read: {reason}") from error
    if not isinstance(values, Mapping) or "acceptance_length" not in values:
        raise DataError(f"compare: {file}: not an evaluation (as {RESULT_FILE} of a run)")
    return dict(values)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return short names that differ: the last parts of the paths that are not all the same."""
    folders = [path.parent if path.name == RESULT_FILE else path for path in paths]
    for count in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [f"{folder} ({number})" for number, folder in enumerate(folders, 1)]


def comparison_grid(found: Comparison) -> Grid:
    """Return the differences as a table, all prompts last."""
    rows = [_row(name, part) for name, part in found.parts.items()]
    return Grid(
        "comparison",
        f"{found.second.name} against {found.first.name}",
        ("prompts of", "prompts", "first", "second", "difference", "95 % interval", ""),
        (*rows, _row("all", found.whole)),
    )


def _row(name: str, part: Difference) -> tuple[str, ...]:
    return (
        name,
        str(part.num_prompts),
        f"{part.first:.3f}",
        f"{part.second:.3f}",
        f"{part.difference:+.3f}",
        interval(part.interval, "{:+.3f} to {:+.3f}"),
        "differs" if part.significant else "",
    )


def _notes(found: Comparison) -> list[str]:
    notes = [found.verdict()]
    if len(found.parts) > 1:
        notes.append(
            f"Of {len(found.parts)} parts, about one in twenty would be called different by chance."
        )
    ratio = found.speed()
    if ratio is not None:
        notes.append(f"Tokens per second, second over first: {ratio:.2f}.")
    return notes


def _show(found: Comparison, console: Console) -> None:
    grid = comparison_grid(found)
    table = Table(title=grid.title, box=box.SIMPLE_HEAD)
    for number, name in enumerate(grid.header):
        table.add_column(name, justify="right" if 0 < number < len(grid.header) - 1 else "left")
    for row in grid.rows:
        table.add_row(*row, style="bold" if row is grid.rows[-1] else None)
    console.print(table)
    for note in _notes(found):
        console.print(note, soft_wrap=True)


def _page(found: Sequence[Comparison]) -> str:
    parts = ["# Evaluations compared"]
    for one in found:
        grid = comparison_grid(one)
        parts += [f"## {grid.title}", markdown(grid), *_notes(one)]
    definition = str(found[0].first.values["definition"])
    return "\n\n".join([*parts, "## Definition", definition, PAIRED]) + "\n"

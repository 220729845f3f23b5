"""`speculators leaderboard`, and what a sweep writes at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from speculators.config.schema import Config, Objective
from speculators.console import open_console
from speculators.conversion.durable import replace_text
from speculators.errors import DataError
from speculators.evaluation.report.svg import to_png
from speculators.sweep.leaderboard import Leaderboard, rank
from speculators.sweep.plot import draw
from speculators.sweep.records import read_records
from speculators.sweep.table import cells, runs_csv, to_csv, to_markdown, unfinished

STEM = "leaderboard"


def run(config: Config, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Read a sweep anew, write its leaderboard into its folder and show it.

    Raises:
        DataError: no sweep there, or no finished run has the number it is to be ordered by.
    """
    board = conclude(Path(config.sweep.dir or ""), config.sweep.objective)
    if not board.has_numbers:
        raise DataError(
            f"sweep.objective={board.objective}: no finished run has this number; runs.csv shows "
            "what there is"
        )
    for record in board.unfinished:
        open_console().print(f"not finished: {unfinished(record)}", soft_wrap=True)
    return {"entries": len(board.entries), "unfinished": len(board.unfinished)}


def conclude(sweep: Path, objective: Objective | None = None) -> Leaderboard:
    """Write `leaderboard.{csv,md,png}` and `runs.csv` into the folder of a sweep, and show it.

    Without any number to order by, only `runs.csv`.

    Args:
        sweep: the folder.
        objective: number to order by; None: what the runs were made for.

    Raises:
        DataError: no run there, or the runs were made for different numbers.
    """
    records = read_records(sweep)
    replace_text(sweep / "runs.csv", runs_csv(records))
    board = rank(records, objective)
    if not board.has_numbers:
        return board
    replace_text(sweep / f"{STEM}.csv", to_csv(board))
    replace_text(sweep / f"{STEM}.md", to_markdown(board, sweep.name))
    drawing = draw(board)
    if drawing is not None:
        to_png(drawing, sweep.name, sweep / f"{STEM}.png")
    console = open_console()
    console.print(_shown(board, sweep.name))
    console.print(
        f"leaderboard: {sweep / STEM}.md (.csv, .png); every run: runs.csv",
        soft_wrap=True,
    )
    return board


def _shown(board: Leaderboard, title: str) -> Table:
    heads, rows = cells(board, num_beside=1)  # as many as fit 80 columns
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, head in enumerate(heads):  # heads may wrap, numbers may not
        table.add_column(head.replace("_", " "), min_width=max(len(row[index]) for row in rows))
    for row in rows:
        table.add_row(*row)
    return table

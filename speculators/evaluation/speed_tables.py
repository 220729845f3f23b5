"""Tables of speed: servers with and without drafting, and how many tokens to draft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.best_k import MODEL, CycleTimes, best_k
from speculators.evaluation.load import SPEED_DEFINITION
from speculators.evaluation.tables import Grid


def recommendation(
    acceptance: Acceptance, times: Sequence[CycleTimes], console: Console
) -> dict[str, Any]:
    """Work out how many tokens to draft, say it, and return what `evaluation.json` adds."""
    if not times:
        return {}
    found = [best_k(acceptance.per_position, one) for one in times]
    values = {"batches": [one.to_dict() for one in found], "definition": MODEL}
    (grid,) = speed_grids({"best_k": values})
    _show(grid, console)
    for one in found:
        size, count = one.times.batch_size, one.recommended
        what = f"num_speculative_tokens={count}" if count else "no drafting: it does not pay"
        console.print(f"recommended for {size} at once: {what}", style="bold", soft_wrap=True)
    console.print(MODEL, style="dim")
    return {"best_k": values}


def show_speeds(levels: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print what a server, or two, took, with the definition."""
    (grid,) = speed_grids({"served": {"levels": levels, "definition": SPEED_DEFINITION}})
    _show(grid, console)
    console.print(SPEED_DEFINITION, style="dim")


def speed_grids(found: Mapping[str, Any]) -> list[Grid]:
    """Return the tables there are numbers for.

    Args:
        found: `evaluation.json`, or as much of it as there is.
    """
    grids = []
    if served := found.get("served"):
        grids.append(_served(served))
    if best := found.get("best_k"):
        grids.append(_best(best))
    return grids


def _served(served: Mapping[str, Any]) -> Grid:
    """Return one row for each server and number of requests at once."""
    both = "plain" in served["levels"][0]
    speeds = ("first token ms", "between tokens ms", "tokens per s")
    ratios = ("speed-up", "between tokens") if both else ()
    rows = []
    for level in served["levels"]:
        drafting = level["speculative"]
        tau = f"{drafting['acceptance_length']:.3f}"
        more = (f"{level['speedup']:.2f}", _ratio(level.get("inter_token_speedup"))) if both else ()
        at_once = str(level["concurrency"])
        rows.append((at_once, "drafting", tau, *_speed(drafting), *more))
        if both:
            rows.append((at_once, "plain", "", *_speed(level["plain"]), "", ""))
    header = ("at once", "server", "tau", *speeds, *ratios)
    note = f"Means; {served['definition']}."
    return Grid("served", "Speed of the server", header, tuple(rows), note)


def _speed(part: Mapping[str, Any]) -> tuple[str, str, str]:
    throughput = f"{part['tokens_per_second']:.0f}"
    return _mean(part["first_token_ms"]), _mean(part["inter_token_ms"]), throughput


def _mean(spread: Mapping[str, float] | None) -> str:
    return "" if spread is None else f"{spread['mean']:.1f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _best(best: Mapping[str, Any]) -> Grid:
    batches = best["batches"]
    most = max(len(batch["speedups"]) for batch in batches)
    rows = tuple(
        (
            str(batch["batch_size"]),
            str(batch["recommended"] or "none"),
            *(f"{ratio:.2f}" for ratio in batch["speedups"]),
            *[""] * (most - len(batch["speedups"])),
        )
        for batch in batches
    )
    header = ("at once", "recommended", *(f"K={k}" for k in range(1, most + 1)))
    title = "Expected speed-up by drafted tokens"
    return Grid("best_k", title, header, rows, f"{best['definition']}.")


def _show(grid: Grid, console: Console) -> None:
    table = Table(title=grid.title, box=box.SIMPLE_HEAD)
    for name, *cells in zip(grid.header, *grid.rows, strict=True):
        # A narrow terminal breaks headers, never numbers.
        table.add_column(name, justify="right", min_width=max(map(len, cells)))
    for row in grid.rows:
        table.add_row(*row)
    console.print(table)

"""`evaluation.md`: an evaluation as a page of tables, every number with its definition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.evaluation.expected import expected_grid
from speculators.evaluation.speed_tables import speed_grids
from speculators.evaluation.tables import Grid, acceptance_grids, markdown, markdown_table


def evaluation_markdown(found: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        found: what `evaluation.json` holds.
    """
    parts = ["# Evaluation", *_lines(found)]
    for grid in evaluation_grids(found):
        parts += [f"## {grid.title}", markdown(grid)]
    settings = {key: value for key, value in found["settings"].items() if value not in (None, {})}
    parts += ["## Under what circumstances", markdown_table(("", ""), settings.items())]
    return "\n\n".join([*parts, "## Definition", found["definition"]]) + "\n"


def evaluation_grids(found: Mapping[str, Any]) -> list[Grid]:
    """Return every table there are numbers for."""
    compared = found.get("expected")
    published = [expected_grid(compared)] if compared else []
    return [*published, *acceptance_grids(found), *speed_grids(found)]


def _lines(found: Mapping[str, Any]) -> list[str]:
    """Return what no table says."""
    lines = []
    if found.get("lossless_prompts") is not None:
        lines.append(
            f"{found['lossless_prompts']} of {found['num_prompts']} answers equal plain decoding "
            "token for token."
        )
    if skipped := found["settings"].get("num_skipped_prompts"):
        lines.append(f"{skipped} prompts were left out: too long for the verifier's context.")
    if unanswered := found.get("num_unanswered_turns"):
        lines.append(f"{unanswered} later turns were left out: context full.")
    lines.append(f"Distinct 4-grams in the answers: {found['distinct_4gram_share']:.0%}.")
    return lines

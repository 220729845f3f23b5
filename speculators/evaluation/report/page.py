"""`report.html`: a run on one page that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from speculators.evaluation.acceptance import DEFINITION
from speculators.evaluation.report.chart import Chart
from speculators.evaluation.report.figures import charts
from speculators.evaluation.report.run_files import RunFiles
from speculators.evaluation.report.summary import data_table, facts, tiles, title, verdict
from speculators.evaluation.report.svg import to_png, to_svg
from speculators.evaluation.written import evaluation_grids

REPORT_FILE = "report.html"
_MAX_DRAFTS = 60


def write_report(run_dir: Path) -> Path:
    """Write `report.html` and `plots/*.png` into a run directory; return the page's path.

    Reads `resolved.yaml`, `provenance.json`, `metrics.jsonl`, `timing.jsonl`, `result.json`,
    `evaluation.json` and `data_report.json`. A section whose file is missing is left out. The page
    loads nothing: styles and figures are inside it.

    Raises:
        DataError: no such directory, or a damaged file in it.
    """
    files = RunFiles.read(run_dir)
    drawn = charts(files)
    page = run_dir / REPORT_FILE
    page.write_text(render(files, drawn), encoding="utf-8")
    for chart in drawn:
        to_png(chart.drawing, chart.title, run_dir / "plots" / f"{chart.name}.png")
    return page


def render(files: RunFiles, drawn: Sequence[Chart]) -> str:
    """Return the page."""
    folder = resources.files("speculators.evaluation.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["value"] = _value
    environment.tests["table"] = lambda value: isinstance(value, Mapping) and bool(value)
    environment.tests["records"] = _is_records
    template = environment.from_string(
        folder.joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    evaluation = files.evaluation
    return template.render(
        style=Markup(folder.joinpath("report.css").read_text(encoding="utf-8")),
        title=title(files),
        verdict=verdict(files),
        tiles=tiles(files),
        facts=facts(files),
        charts=[(chart, Markup(to_svg(chart.drawing, chart.name))) for chart in drawn],
        grids=evaluation_grids(evaluation),
        mismatches=evaluation.get("mismatches") or [],
        examples=[_shortened(example) for example in evaluation.get("examples") or []],
        data_report=data_table(files.data_report),
        config_text=files.config_text,
        provenance=files.provenance,
        definitions=_definitions(evaluation.get("definition") or DEFINITION),
    )


def _shortened(example: Mapping[str, Any]) -> dict[str, Any]:
    drafts = list(example.get("drafts") or [])
    return {**example, "drafts": drafts[:_MAX_DRAFTS], "left_out": len(drafts[_MAX_DRAFTS:])}


def _definitions(definition: str) -> list[tuple[str, str]]:
    """Make sentences of the written definition; add the words only a report uses."""
    clauses = [clause[:1].upper() + clause[1:] for clause in definition.split("; ")]
    return [
        ("Acceptance", ". ".join(clauses) + "."),
        (
            "Lossless",
            "Prompts whose every greedy answer equals plain decoding of the same verifier, token "
            "for token.",
        ),
        (
            "Speed-up",
            "Tokens per second with drafting over tokens per second without, same prompts, taking "
            "turns, prefill included.",
        ),
        (
            "Verifier calls saved",
            "1 - forward passes of the verifier / answer tokens; plain decoding needs one pass per "
            "token.",
        ),
        (
            "Walk",
            "Acceptance on validation rows: from the first response token draft, count the "
            "leading tokens the verifier would choose, jump behind them. Equals decoding where "
            "the rows are the verifier's own greedy answers (on-policy share 100 %).",
        ),
        (
            "Distinct 4-grams",
            "Distinct over all 4-grams within the answers. Far below 100 % the verifier repeats "
            "itself, and acceptance on repetition means little.",
        ),
    ]


def _value(value: Any) -> str:
    """Return one value for a table."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        case int():
            return f"{value:,}"
        case list() | tuple():
            return ", ".join(map(_value, value)) or "none"
        case Mapping():
            return ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) or "none"
        case _:
            return str(value)


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)

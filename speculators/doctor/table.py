"""Findings as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from speculators.doctor.finding import Finding, Verdict

_STYLES = {Verdict.passed: "green", Verdict.failed: "bold red", Verdict.unchecked: "dim"}


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return one row per stage."""
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for name in ("stage", "", "found", "allowed"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        style = _STYLES[finding.verdict]
        where = f" ({finding.where})" if finding.where else ""
        found = f"{finding.text}{where}" + (f": {finding.measured}" if finding.measured else "")
        table.add_row(
            finding.stage,
            Text(finding.verdict.value, style),
            found,
            finding.allowed,
        )
    return table

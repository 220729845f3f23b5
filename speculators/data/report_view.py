"""What preparation found, as tables in a terminal."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from speculators.console import open_console
from speculators.data.remarks import remarks
from speculators.data.report import DataReport

_BAR = 40


def report_view(report: DataReport, console_width: int = 100) -> RenderableType:
    """Return the report as rich tables."""
    parts: list[RenderableType] = [_totals(report), _lengths(report, min(_BAR, console_width // 3))]
    if report.roles:
        parts.insert(1, _roles(report))
    if len(report.sources) > 1:
        parts.append(_sources(report))
    if report.coverage_sizes:
        parts.append(_vocabulary(report))
    if report.dropped:
        parts.append(_dropped(report))
    parts += [Text(f"look: {line}", style="yellow") for line in remarks(report)]
    return Group(*parts)


def print_report(report: DataReport, console: Console | None = None) -> None:
    """Print the report."""
    console = console or open_console()
    console.print(report_view(report, console.width))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index > 0)
    return table


def _totals(report: DataReport) -> Table:
    table = _table("Data", "", "")
    table.show_header = False
    table.columns[0].no_wrap, table.columns[1].no_wrap = True, False
    lines = {
        "rows read": f"{report.num_rows:,}",
        "conversations": f"{report.num_conversations:,}",
        "samples": f"{report.num_samples:,} (train {report.num_train:,}, "
        f"validation {report.num_validation:,})",
        "tokens": f"{report.num_tokens:,}",
        "supervised": f"{report.num_supervised:,} ({report.supervised_share:.1%})",
        "truncated": f"{report.num_truncated:,} rows, {report.num_lost_tokens:,} tokens lost",
        "duplicates": f"{report.num_duplicates:,}",
        "loss mask by": report.method,
    }
    if report.num_answers:
        answers = f"{report.num_supervised_answers:,} of {report.num_answers:,}"
        lines["answers supervised"] = answers
    if 0 < report.num_groups < report.num_conversations:
        lines["split by"] = _groups(report)
    if report.not_shown:
        lines["template without"] = ", ".join(report.not_shown)
    if report.num_split:
        lines["several rows for"] = f"{report.num_split:,} conversations (history is rewritten)"
    if report.finish_reasons:
        lines["answers"] = _answers(report)
    for name, count in report.contaminated.items():
        lines[f"hold a prompt of {name}"] = f"{count:,} conversations"
    if report.num_open_turns:
        lines["answers without end"] = f"{report.num_open_turns:,}"
    for name, value in lines.items():
        table.add_row(name, value)
    return table


def _groups(report: DataReport) -> str:
    groups = f"{report.num_groups:,} groups of conversations that begin alike"
    return f"{groups} (at most {report.largest_group:,} samples)"


def _answers(report: DataReport) -> str:
    reasons = ", ".join(f"{why} {n:,}" for why, n in sorted(report.finish_reasons.items()))
    known = report.num_remembered_answers
    earlier = f", {known:,} from an earlier start" if known else ""
    total = sum(report.finish_reasons.values())
    return f"{total:,} ({reasons}), {report.num_answer_tokens:,} tokens{earlier}"


def _roles(report: DataReport) -> Table:
    table = _table("Supervised by role", "role", "tokens", "supervised", "share")
    for role, (tokens, supervised) in sorted(report.roles.items()):
        share = f"{supervised / max(1, tokens):.1%}"
        table.add_row(role, f"{tokens:,}", f"{supervised:,}", share)
    return table


def _lengths(report: DataReport, width: int) -> Table:
    table = _table("Length of rows before truncation", "tokens", "rows", "")
    table.columns[2].justify = "left"
    most = max([1, *report.length_counts])
    for index, (edge, count) in enumerate(
        zip(report.length_edges, report.length_counts, strict=True)
    ):
        last = index + 1 == len(report.length_edges)
        label = f"{edge}+" if last else f"{edge}-{report.length_edges[index + 1] - 1}"
        table.add_row(label, f"{count:,}", "█" * round(width * count / most))
    return table


def _sources(report: DataReport) -> Table:
    table = _table("Sources", "source", "samples", "tokens", "supervised", "cut")
    for name, count in sorted(report.sources.items()):
        values = (count.samples, count.tokens, count.supervised, count.truncated)
        table.add_row(name, *(f"{value:,}" for value in values))
    return table


def _vocabulary(report: DataReport) -> Table:
    table = _table("Draft vocabulary by coverage", "supervised tokens", "most frequent tokens")
    for share, size in report.coverage_sizes.items():
        table.add_row(f"{share} %", f"{size:,}")
    if report.suggested_vocab_size:
        table.add_row("suggested", f"speculator.draft_vocab_size={report.suggested_vocab_size}")
    return table


def _dropped(report: DataReport) -> Table:
    table = _table("Left out", "reason", "count")
    for reason, count in sorted(report.dropped.items(), key=lambda item: -item[1]):
        table.add_row(reason, f"{count:,}")
    return table

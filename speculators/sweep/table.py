"""A leaderboard as CSV for programs and as Markdown for people."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

from speculators.sweep.leaderboard import Entry, Leaderboard, Spread
from speculators.sweep.records import Record, Status

_BESIDE = ("acceptance_length", "forecast_speedup", "verifier_calls_saved")
"""Numbers a person sees beside the objective; the CSV has all."""
_PERCENT = ("verifier_calls_saved",)
_DRAWN = re.compile(r"-?\d+\.\d{6,}(e-?\d+)?")
"""A number nobody typed: one a search drew from an interval."""
_NOTE = (
    "`±`: sample standard deviation over seeds. `to the best`: mean difference to the first row "
    "over the same seeds, `±` its standard deviation."
)


def to_csv(board: Leaderboard) -> str:
    """Return one line per entry: labels, the objective over seeds, means of all other numbers."""
    others = sorted({name for entry in board.entries for name in entry.others})
    name = board.objective
    rows: list[list[object]] = [
        [
            *("rank", *board.columns, "runs", "seeds"),
            *(f"{name}_{part}" for part in _PARTS),
            *others,
        ]
    ]
    for number, entry in enumerate(board.entries, start=1):
        means = [_mean(entry.others.get(other)) for other in others]
        seeds = " ".join(map(str, entry.by_seed))
        labels = [entry.labels[column] for column in board.columns]
        rows.append([number, *labels, entry.num_runs, seeds, *_parts(entry), *means])
    return _csv(rows)


_PARTS = ("mean", "deviation", "lowest", "highest", "to_the_best", "to_the_best_deviation")


def _parts(entry: Entry) -> list[float | None]:
    spread, behind = entry.spread, entry.behind
    ends = [None] * 2 if spread is None else [min(spread.values), max(spread.values)]
    deviation = None if spread is None else spread.deviation
    apart = [None] * 2 if behind is None else [behind.mean, behind.deviation]
    return [_mean(spread), deviation, *ends, *apart]


def runs_csv(records: Sequence[Record]) -> str:
    """Return one line per run: what it differs in, how it ended, and every number it has."""
    keys = list(dict.fromkeys(key for record in records for key in record.overrides))
    names = list(dict.fromkeys(name for record in records for name in record.values))
    rows: list[list[object]] = [["run", "status", *keys, "seconds", *names, "error"]]
    for record in records:
        given = [record.overrides.get(key) for key in keys]
        values = [record.values.get(name) for name in names]
        row = [record.name, record.status.value, *given, record.seconds, *values, record.error]
        rows.append(row)
    return _csv(rows)


def to_markdown(board: Leaderboard, title: str) -> str:
    """Return the leaderboard, how to read it, and the runs that did not finish with their error."""
    lines = [f"# {title}", "", _summary(board), "", *_table(board), "", _NOTE]
    if board.unfinished:
        lines += ["", "Not finished:", "", *(f"- {unfinished(one)}" for one in board.unfinished)]
    return "\n".join(lines) + "\n"


def cells(board: Leaderboard, *, num_beside: int) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the table that people see.

    Args:
        board: the leaderboard.
        num_beside: most numbers beside the one that orders it.
    """
    beside = [
        name
        for name in _BESIDE
        if name != board.objective and any(name in entry.others for entry in board.entries)
    ][:num_beside]
    heads = ["", *short_keys(board.columns), board.objective, "to the best", *beside, "runs"]
    rows = []
    for number, entry in enumerate(board.entries, start=1):
        finished = len(entry.by_seed)
        count = str(finished) if finished == entry.num_runs else f"{finished} of {entry.num_runs}"
        rows.append(
            [
                str(number),
                *(short_label(entry.labels[column]) for column in board.columns),
                _shown(board.objective, entry.spread),
                _shown(board.objective, entry.behind, signed=True),
                *(_shown(name, entry.others.get(name)) for name in beside),
                count,
            ]
        )
    return heads, rows


def short_keys(keys: Sequence[str]) -> list[str]:
    """Return the last part of each dotted key, where that leaves them apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return [short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)]


def short_label(label: str) -> str:
    """Return a drawn number with four digits, any other value as it is; the CSV keeps all."""
    return f"{float(label):.4g}" if _DRAWN.fullmatch(label) else label


def unfinished(record: Record) -> str:
    """Return name and reason of a run that did not finish, in one line."""
    if record.status is Status.failed:
        return f"{record.name}: {record.error}"
    reason = record.error or "its process ended before it did (killed, or still running)"
    return f"{record.name}: {reason}"


def _summary(board: Leaderboard) -> str:
    order = "more is better" if board.maximise else "less is better"
    return f"Ordered by `{board.objective}` ({order}); {board.num_finished} runs finished."


def _table(board: Leaderboard) -> Iterator[str]:
    heads, rows = cells(board, num_beside=len(_BESIDE))
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join(text.replace('|', '&#124;') for text in row)} |"


def _shown(name: str, spread: Spread | None, *, signed: bool = False) -> str:
    if spread is None:
        return ""
    sign = "+" if signed else ""
    scale, form, unit = (100, ".1f", " %") if name in _PERCENT else (1, ".3f", "")
    text = f"{scale * spread.mean:{sign}{form}}"
    if spread.deviation is not None:
        text += f" ± {scale * spread.deviation:{form}}"
    return text + unit


def _mean(spread: Spread | None) -> float | None:
    return None if spread is None else spread.mean


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()

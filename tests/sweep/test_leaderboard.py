"""Grouping over seeds, order, differences and tables, against sums done by hand."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculators.config.schema import Objective
from speculators.errors import DataError
from speculators.sweep.command import conclude
from speculators.sweep.leaderboard import Leaderboard, rank
from speculators.sweep.plot import draw
from speculators.sweep.records import (
    Record,
    Status,
    plain_values,
    read_record,
    read_records,
    write_record,
)
from speculators.sweep.table import runs_csv, short_keys, to_csv, to_markdown


def record(seed: int, value: float | None, **changes: Any) -> Record:
    given = {name.replace("__", "."): str(item) for name, item in changes.items()}
    status = Status.failed if value is None else Status.finished
    return Record(
        name="_".join([*(f"{k}-{v}" for k, v in given.items()), f"seed-{seed}"]),
        fingerprint=f"{given}{seed}",
        overrides={**given, "seed": str(seed)},
        settings={**given, "seed": seed, "training.best_metric": "acceptance_length"},
        objective="acceptance_length",
        status=status,
        values={} if value is None else {"acceptance_length": value, "speedup": value / 2},
        error="out of memory" if value is None else None,
    )


def order(board: Leaderboard) -> list[tuple[str, ...]]:
    return [tuple(entry.labels.values()) for entry in board.entries]


def test_runs_are_grouped_over_seeds_and_ordered_by_their_mean() -> None:
    runs = [record(s, v, lr=lr) for lr, vs in {"1": (2.0, 2.2), "2": (2.5, 2.3)}.items()
            for s, v in enumerate(vs)]  # fmt: skip
    board = rank(runs)
    assert (board.objective, board.columns, order(board)) == (
        "acceptance_length",
        ("lr",),
        [("2",), ("1",)],
    )
    best, second = board.entries
    assert best.by_seed == {0: 2.5, 1: 2.3}
    assert best.spread is not None
    assert best.spread.deviation == pytest.approx(statistics.stdev([2.5, 2.3]))
    assert best.behind is None
    # Paired: the same seeds, one by one.
    assert second.behind is not None
    assert second.behind.values == pytest.approx((-0.5, -0.1))
    assert second.others["speedup"].mean == pytest.approx(1.05)


def test_only_shared_seeds_are_compared() -> None:
    board = rank([record(0, 3.0, lr=1), record(1, 2.0, lr=1), record(1, 1.0, lr=2)])
    assert board.entries[1].behind is not None
    assert board.entries[1].behind.values == (-1.0,)
    assert board.entries[1].behind.deviation is None
    apart = rank([record(0, 3.0, lr=1), record(1, 1.0, lr=2)])
    assert apart.entries[1].behind is None


def test_what_failed_is_listed_and_stands_last() -> None:
    board = rank([record(0, None, lr=1), record(0, 2.0, lr=2), record(1, None, lr=2)])
    assert order(board) == [("2",), ("1",)]
    assert [one.name for one in board.unfinished] == ["lr-1_seed-0", "lr-2_seed-1"]
    assert board.num_finished == 1
    text = to_markdown(board, "rate")
    assert "| 1 | 2 | 2.000 |" in text
    assert "| 1 of 2 |" in text
    assert "- lr-1_seed-0: out of memory" in text
    killed = record(0, None, lr=1)
    killed = Record(**{**vars(killed), "status": Status.running, "error": None})
    assert "killed, or still running" in to_markdown(rank([killed, record(0, 1.0, lr=2)]), "rate")


def test_less_can_be_better() -> None:
    def with_loss(lr: str, loss: float) -> Record:
        one = record(0, 2.0, lr=lr)
        settings = {**one.settings, "training.best_metric": "loss"}
        values = {**one.values, "best_value": loss}
        return Record(**{**vars(one), "settings": settings, "values": values})

    runs = [with_loss("1", 3.5), with_loss("2", 3.0)]
    board = rank(runs, Objective.best_value)
    assert (order(board), board.maximise) == ([("2",), ("1",)], False)
    assert "less is better" in to_markdown(board, "x")


def test_equal_overrides_with_other_settings_are_kept_apart() -> None:
    """A sweep file was edited between two starts: the runs are not mixed."""
    first, second = record(0, 2.0, lr=1), record(0, 3.0, lr=1)
    second = Record(**{**vars(second), "settings": {**second.settings, "training.epochs": 3}})
    board = rank([first, second, record(0, 1.0, lr=2)])
    assert board.columns == ("lr", "training.epochs")
    assert order(board) == [("1", "3"), ("1", "-"), ("2", "-")]


def test_runs_made_for_different_numbers_need_a_choice() -> None:
    other = Record(**{**vars(record(0, 2.0, lr=2)), "objective": "speedup"})
    with pytest.raises(DataError, match=r"made for acceptance_length and speedup: choose one"):
        rank([record(0, 2.0, lr=1), other])
    assert rank([record(0, 2.0, lr=1), other], Objective.speedup).objective == "speedup"


@given(
    st.dictionaries(
        st.tuples(st.integers(0, 4), st.integers(0, 3)), st.floats(1, 16), min_size=1, max_size=20
    )
)
@settings(max_examples=50, deadline=None)
def test_every_number_comes_from_the_runs(values: dict[tuple[int, int], float]) -> None:
    board = rank([record(seed, value, lr=lr) for (lr, seed), value in values.items()])
    rows = list(csv.DictReader(io.StringIO(to_csv(board))))
    by_lr: dict[str, list[float]] = {}
    for (lr, _), value in values.items():
        by_lr.setdefault(str(lr), []).append(value)
    means = [float(row["acceptance_length_mean"]) for row in rows]
    assert means == sorted(means, reverse=True)
    assert means == pytest.approx(sorted(map(statistics.fmean, by_lr.values()), reverse=True))
    assert sum(int(row["runs"]) for row in rows) == len(values)
    if len(by_lr) > 1:
        for row in rows:
            assert float(row["acceptance_length_lowest"]) == min(by_lr[row["lr"]])
            assert float(row["acceptance_length_highest"]) == max(by_lr[row["lr"]])


def test_numbers_a_search_drew_are_shortened_for_people_and_kept_for_programs() -> None:
    drawn = {"0.0025881702149379": "0.002588", "6.18571699883374e-05": "6.186e-05"}
    typed = ["3e-4", "0.0003", "0.5", "[1,3]", "null", "128", "{ce:1}", "1.5e-3"]
    runs = [record(0, 2.0, lr=lr) for lr in [*drawn, *typed]]
    board = rank(runs)
    rows = to_markdown(board, "search").splitlines()
    shown = {row.split(" | ")[1] for row in rows if row.startswith("| ") and " | " in row}
    assert shown >= {*drawn.values(), *typed}
    assert all(lr in to_csv(board) for lr in drawn)


def test_keys_are_shortened_where_that_leaves_them_apart() -> None:
    assert short_keys(["a.lr", "b.size"]) == ["lr", "size"]
    assert short_keys(["a.lr", "b.lr", "c"]) == ["a.lr", "b.lr", "c"]


@pytest.mark.parametrize("values", [["1", "2", "100"], ["[1]", "[1, 3]", "a|b"]])
def test_it_is_drawn_on_an_axis_of_numbers_or_as_a_list(values: list[str]) -> None:
    board = rank([record(s, 1.0 + s, lr=v) for v in values for s in (0, 1)])
    drawing = draw(board)
    assert drawing is not None
    (axes,) = drawing.axes
    numbers = values[0] == "1"
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        ("lr", "acceptance_length") if numbers else ("acceptance_length", "lr")
    )
    assert axes.get_xscale() == ("log" if numbers else "linear")
    if not numbers:
        assert [text.get_text() for text in axes.get_yticklabels()] == values
    assert draw(rank([record(0, None, lr=1)])) is None


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    one = record(3, 2.5, speculator__block_size=8)
    write_record(tmp_path / one.name, one)
    assert read_record(tmp_path / one.name) == one
    assert read_records(tmp_path) == [one]
    assert read_record(tmp_path / "nowhere") is None
    (tmp_path / one.name / "job.json").write_text("{}")
    with pytest.raises(DataError, match=r"job\.json: cannot be read .*: remove it to run it again"):
        read_record(tmp_path / one.name)
    with pytest.raises(DataError, match=r"sweep\.dir=.*: holds no run of a sweep"):
        read_records(tmp_path / "nowhere")


def test_values_of_a_result_are_numbers_and_texts() -> None:
    result = {"a": 1, "b": 2.5, "c": None, "d": "x", "e": [1], "f": {"g": 1}}
    assert plain_values(result) == {"a": 1, "b": 2.5, "c": None, "d": "x"}
    assert plain_values(None) == plain_values(2.0) == {}


def test_everything_is_written_into_the_folder_of_the_sweep(tmp_path: Path) -> None:
    runs = [record(0, 2.0, lr=1), record(0, None, lr=2)]
    for one in runs:
        write_record(tmp_path / one.name, one)
    board = conclude(tmp_path)
    for name in ("leaderboard.md", "leaderboard.csv", "leaderboard.png", "runs.csv"):
        assert (tmp_path / name).stat().st_size > 0
    assert (tmp_path / "leaderboard.md").read_text() == to_markdown(board, tmp_path.name)
    rows = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    assert [(row["status"], row["lr"], row["error"]) for row in rows] == [
        ("finished", "1", ""),
        ("failed", "2", "out of memory"),
    ]
    assert (tmp_path / "runs.csv").read_text() == runs_csv(runs)

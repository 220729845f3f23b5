from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from speculators.algorithms.base import Output
from speculators.errors import CheckpointError
from speculators.training.metrics import JsonLines, MetricSums, cut_lines


def output(loss: float, divisor: float, right: int = 0, seen: int = 0) -> Output:
    return Output(
        torch.tensor(loss),
        torch.tensor(divisor),
        {"accuracy": torch.tensor(right)},
        {"accuracy": torch.tensor(seen)},
    )


def test_sums_are_divided_once() -> None:
    sums = MetricSums()
    sums.add(output(1.0, 1.0, 1, 2))
    sums.add(output(6.0, 3.0, 1, 6))
    sums.add_value("gradient_norm", 3.0, torch.zeros(()))
    sums.add_value("gradient_norm", 4.0, torch.zeros(()))
    assert sums.values() == {"loss": 1.75, "accuracy": 0.25, "gradient_norm": 3.5}
    sums.clear()
    assert sums.values() == {}


def test_nothing_seen_is_none_not_nan() -> None:
    sums = MetricSums()
    sums.add(output(0.0, 0.0))
    assert sums.values() == {"loss": None, "accuracy": None}


def test_half_way_sums_survive_json_exactly() -> None:
    sums, again = MetricSums(), MetricSums()
    for n in range(1, 4):
        sums.add(output(1 / n, n / 3, n, 7))
    again.load(json.loads(json.dumps(sums.state())), torch.device("cpu"))
    for part in (sums, again):
        part.add(output(0.1, 0.7, 1, 7))
    assert sums.state() == again.state()
    assert list(sums.values()) == list(again.values())
    empty = MetricSums()
    empty.load(MetricSums().state(), torch.device("cpu"))
    assert empty.values() == {}


def test_many_small_counts_stay_exact() -> None:
    """Sums of a long window in fp32 would stop growing at 2^24."""
    sums = MetricSums()
    sums.add(output(2.0**24, 2.0**24))
    for _ in range(3):
        sums.add(output(1.0, 1.0))
    assert sums.state()["counts"]["loss"] == 2**24 + 3


def test_lines_are_strict_json(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "run" / "m.jsonl", last_step=0)
    lines.write({"step": 1, "loss": float("nan"), "norm": float("inf"), "list": [1, 2]})
    lines.flush()
    lines.close()
    assert (tmp_path / "run" / "m.jsonl").read_text() == (
        '{"step": 1, "loss": null, "norm": null, "list": [1, 2]}\n'
    )


def test_later_and_unfinished_lines_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    kept = '{"step": 1}\n{"step": 2}\n{"step": 2, "kind": "validation"}\n'
    path.write_text(kept + '{"step": 3}\n{"ste')
    assert cut_lines(path, 2) == 2
    assert path.read_text() == kept
    assert cut_lines(path, 2) == 0
    assert cut_lines(tmp_path / "none.jsonl", 2) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\nnotes\n')
    with pytest.raises(CheckpointError) as error:
        JsonLines(path, 0)
    assert str(error.value) == f"{path}:2: is not a line of metrics; move the file away to go on"
    assert path.read_text() == '{"step": 1}\nnotes\n'

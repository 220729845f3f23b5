"""What a watched run says of its steps, and that watching changes nothing."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.console import open_console
from speculators.modules.parts import observed, part
from speculators.training.memory import DevicePeak
from speculators.training.profile import watched_steps
from training.test_with_dflash import REDUCED, config, drafter
from training.toy import toy_trainer

CPU = torch.device("cpu")


def lines(run_dir: Path) -> list[str]:
    return (run_dir / "metrics.jsonl").read_text().splitlines()


@pytest.fixture
def watched(tmp_path: Path) -> tuple[Path, str]:
    """A run of toy size, watched for three timed steps."""
    model: Any = drafter(REDUCED)
    out = io.StringIO()
    trainer = toy_trainer(tmp_path, config(tmp_path), drafter=model)
    with watched_steps(3, model, CPU, tmp_path, open_console(file=out, width=120), bfloat16=False):
        trainer.fit()
    return tmp_path, out.getvalue()


def test_time_of_parts_adds_up(watched: tuple[Path, str]) -> None:
    folder, printed = watched
    found = json.loads((folder / "profile.json").read_text())
    seconds = found["seconds"]
    assert {"step/data wait", "step/forward", "step/backward", "step/optimizer"} <= seconds.keys()
    assert {"step/forward/mask", "step/forward/head and loss"} <= seconds.keys()
    assert "step/forward/layers/attention" in seconds
    for path, value in seconds.items():
        below = [v for p, v in seconds.items() if p.rpartition("/")[0] == path]
        assert sum(below) <= value
    assert found["num_steps"] == 3
    assert found["flops"] > 0
    assert found["mfu"] == pytest.approx(found["flops"] / seconds["step"] / found["peak_flops"])
    assert "MFU" in printed


def test_memory_of_a_part_is_at_most_that_of_what_it_belongs_to(watched: tuple[Path, str]) -> None:
    found = json.loads((watched[0] / "profile.json").read_text())["peak_bytes"]
    assert found["step"] == max(found.values())
    assert found["step/forward"] >= found["step/forward/layers"] > 0


def test_a_device_keeps_the_peaks_of_parts_inside_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an allocator that, as CUDA's, has one peak for all."""
    now, peak = 100, 100

    def allocate(size: int) -> None:
        nonlocal now, peak
        now += size
        peak = max(peak, now)

    def reset(_: object) -> None:
        nonlocal peak
        peak = now

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: now)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    allocate(900)  # before the step
    allocate(-900)
    memory = DevicePeak(torch.device("cuda"))
    step, found = memory.begin(), {}
    for name, high in (("forward", 50), ("backward", 30), ("optimizer", 5)):
        before = memory.begin()
        allocate(high)
        if name == "forward":
            inner = memory.begin()
            allocate(-high)
            allocate(20)
            found["layers"] = memory.end(inner)
            allocate(-20)
        else:
            allocate(-high)
        found[name] = memory.end(before)
    found["step"] = memory.end(step)
    assert found == {"layers": 50, "forward": 50, "backward": 30, "optimizer": 5, "step": 50}


def test_the_trace_names_the_parts(watched: tuple[Path, str]) -> None:
    events = json.loads((watched[0] / "trace.json").read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"step", "forward", "backward", "optimizer", "mask"} <= names


def test_watching_changes_no_number(watched: tuple[Path, str], tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    model: Any = drafter(REDUCED)
    toy_trainer(alone, config(alone), drafter=model).fit()
    assert lines(alone) == lines(watched[0])


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    model = drafter(REDUCED)
    with watched_steps(1, model, CPU, tmp_path, open_console(quiet=True), bfloat16=False):
        assert "compute_loss" in vars(model)
    assert "compute_loss" not in vars(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not (tmp_path / "profile.json").exists()  # no step was made


def test_a_part_that_nobody_watches_is_its_function() -> None:
    seen: list[str] = []

    @part("double")
    def double(x: int) -> int:
        return 2 * x

    assert double(2) == 4
    with observed(lambda name: (seen.append(name), nullcontext())[1]):
        assert double(x=3) == 6
    double(4)
    assert seen == ["double"]

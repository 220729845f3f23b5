"""A run in several processes, from the command line: result, errors, signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from speculators.config.composition import compose
from speculators.errors import LaunchError
from speculators.launch.handover import Handover
from speculators.launch.processes import _environment
from speculators.launch.worker import own_device

ROOT = Path(__file__).parents[2]
SMALL = (
    "training.max_steps=30",
    "training.log_every_steps=5",
    "training.validate_every_steps=15",
    "data.max_samples=60",
    "data.regenerate.enabled=false",
    "evaluation.num_prompts=2",
    "evaluation.max_new_tokens=16",
)


def command(folder: Path, *overrides: str) -> list[str]:
    places = (f"output_dir={folder}", f"cache_dir={folder.parent / 'cache'}")
    return [sys.executable, str(ROOT / "train.py"), *SMALL, *places, *overrides]


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *overrides), capture_output=True, text=True, check=False, cwd=ROOT
    )


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_the_first_rank_that_reported_is_heard(tmp_path: Path) -> None:
    handover = Handover(tmp_path)
    handover.write("a: 1\n", ["speculators", "train"])
    assert handover.first_error() is None
    handover.report(11, "later", 3)
    handover.report(2, "first", 4)
    assert handover.first_error() == ("first", 4)
    handover.write("a: 1\n", [])
    assert handover.first_error() is None


STUBBORN = """
import signal, sys, time
from pathlib import Path
from speculators.launch.agent import SIGNALS
signal.signal(signal.SIGTERM, lambda number, frame: None)
signal.signal(signal.SIGINT, lambda number, frame: None)
signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
Path("ready").touch()
end = time.monotonic() + 4
while time.monotonic() < end:
    time.sleep(0.1)
Path("saved").touch()
sys.exit(143)
"""


@pytest.mark.slow
def test_workers_have_time_whoever_repeats_a_signal(tmp_path: Path) -> None:
    """Left to itself, torchrun dies of a third signal and leaves its workers behind."""
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    agent = subprocess.Popen(
        [sys.executable, "-m", "speculators.launch.agent", "--standalone", "--module", "stubborn"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        stderr=subprocess.DEVNULL,
    )
    while agent.poll() is None and not (tmp_path / "ready").exists():
        time.sleep(0.05)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        agent.send_signal(number)
        time.sleep(0.3)
    assert agent.poll() is None
    assert agent.wait(timeout=60) == 128 + signal.SIGINT
    assert (tmp_path / "saved").exists()


def test_a_signal_has_as_much_time_as_a_gradient() -> None:
    config = compose("train", ["launcher=ddp", "launcher.timeout_seconds=77.5"])
    assert _environment(config)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "78"


def test_each_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    monkeypatch.setattr("speculators.launch.worker.choose_device", torch.device)
    assert own_device("cpu", 3, 4) == torch.device("cpu")
    assert own_device("cuda", 1, 2) == torch.device("cuda", 1)
    assert own_device("cuda:1", 0, 1) == torch.device("cuda", 1)
    assert chosen == [1, 1]
    with pytest.raises(LaunchError) as error:
        own_device("cuda", 0, 3)
    assert str(error.value) == (
        "launcher.num_processes=3: each needs a device of its own, and this machine has 2 (cuda); "
        "use 2 or fewer, or device=cpu"
    )
    with pytest.raises(LaunchError, match=r"device=cuda:1: one device for "):
        own_device("cuda:1", 0, 2)


def test_torchrun_is_told_what_to_type(tmp_path: Path) -> None:
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}
    done = subprocess.run(
        command(tmp_path / "run"), capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 6
    assert done.stderr.startswith("error: torchrun: ")
    assert "launcher=ddp" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ddp", "fsdp"])
def test_two_processes_give_the_result_of_one(launcher: str, tmp_path: Path) -> None:
    one = run(tmp_path / "one", "training.accumulation_steps=2")
    assert one.returncode == 0, one.stderr
    two = run(tmp_path / "two", f"launcher={launcher}", "launcher.num_processes=2")
    assert two.returncode == 0, two.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=5e-6)
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two")]
    assert results[1]["lossless_prompts"] == results[1]["num_prompts"] == 2
    assert results[1]["acceptance_length"] == pytest.approx(
        results[0]["acceptance_length"], abs=0.5
    )
    assert "checkpoint:" in two.stdout


@pytest.mark.slow
def test_two_machines_meet_and_give_the_result_of_one(tmp_path: Path) -> None:
    """Two agents that know of each other by the rendezvous alone; here they share a host."""
    one = run(tmp_path / "one", "training.accumulation_steps=2", "num_threads=1")
    assert one.returncode == 0, one.stderr
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        meeting = f"launcher.rendezvous=localhost:{probe.getsockname()[1]}"
    shape = ("launcher=ddp", "launcher.num_nodes=2", "launcher.num_processes=1", "num_threads=1")
    machines = [
        subprocess.Popen(
            command(tmp_path / "two", *shape, meeting), stderr=subprocess.PIPE, cwd=ROOT
        )
        for _ in range(2)
    ]
    for machine in machines:
        _, text = machine.communicate(timeout=300)
        assert machine.returncode == 0, text
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)


@pytest.mark.slow
def test_an_error_of_a_worker_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path / "run", "launcher=ddp", "speculator.target_layer_ids=[99]")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "speculator.target_layer_ids=[99]" in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    undisturbed = run(tmp_path / "whole", "launcher=fsdp")
    assert undisturbed.returncode == 0, undisturbed.stderr
    folder = tmp_path / "stopped"
    process = subprocess.Popen(
        command(folder, "launcher=fsdp"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    while process.poll() is None and not (folder / "metrics.jsonl").exists():
        time.sleep(0.05)
    for _ in range(4):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, text
    assert b"error: stopped by SIGTERM after step" in text
    assert run(folder, "launcher=fsdp").returncode == 0
    whole, again = (tmp_path / n / "metrics.jsonl" for n in ("whole", "stopped"))
    assert whole.read_text() == again.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "below",
    [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), ("hydra/launcher=submitit_local",)],
)
def test_runs_of_a_sweep_have_two_processes_each(below: tuple[str, ...], tmp_path: Path) -> None:
    shape = ("launcher=ddp", "num_threads=1", "training.max_steps=6")
    alone = run(tmp_path / "alone", *shape, "optimizer.lr=0.001")
    assert alone.returncode == 0, alone.stderr
    places = (f"hydra.sweep.dir={tmp_path / 'sweep'}", f"cache_dir={tmp_path / 'cache'}")
    rates = "optimizer.lr=0.001,0.002"
    done = subprocess.run(
        [sys.executable, "train.py", "--multirun", *SMALL, *shape, *places, rates, *below],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = {
        path.parent.name: losses(path.parent) for path in tmp_path.glob("sweep/*/metrics.jsonl")
    }
    assert len(found) == 2
    assert losses(tmp_path / "alone") in found.values()

"""One run in several processes: starts them, waits, and brings back result or error.

The configuration has been composed once and goes to the workers as a file. This side never
imports torch, so it also works below any sweep launcher.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from speculators.config.loading import to_yaml
from speculators.config.schema import Config
from speculators.errors import LaunchError, SpeculatorsError
from speculators.launch.handover import Handover


class WorkerError(SpeculatorsError):
    """What a worker process reported: its message and exit status.

    Args:
        message: as the worker would have printed it.
        exit_code: status of the whole command.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)


def run(config: Config, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Train in `launcher.num_processes` processes and return what `result.json` holds.

    Raises:
        WorkerError: the first error a worker reported.
        LaunchError: the processes ended without a report.
    """
    handover = Handover(Path(config.output_dir))
    handover.write(to_yaml(config), argv)
    status, stopped = _wait(_command(config, handover.folder), _environment(config))
    if (found := handover.first_error()) is not None:
        raise WorkerError(*found)
    if status != 0 and stopped is not None:
        raise WorkerError(
            f"stopped by {signal.Signals(stopped).name}, with nothing to save or no time for it; "
            "the same command goes on from the newest checkpoint, if there is one",
            128 + stopped,
        )
    if status != 0:
        raise LaunchError(
            f"launcher={config.launcher.name}: the processes ended with status {status} and no "
            "report; what the first of them printed stands above"
        )
    return json.loads((Path(config.output_dir) / "result.json").read_text(encoding="utf-8"))


def _command(config: Config, folder: Path) -> list[str]:
    launcher = config.launcher
    meeting = ["--standalone"]
    if launcher.num_nodes > 1:
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={launcher.rendezvous}"]
        meeting.append(f"--rdzv-id={Path(config.output_dir).name}")
    return [
        *(sys.executable, "-m", "speculators.launch.agent"),
        *(*meeting, f"--nnodes={launcher.num_nodes}"),
        f"--nproc-per-node={launcher.num_processes}",
        *("--module", "speculators.launch.worker", str(folder)),
    ]


def _environment(config: Config) -> dict[str, str]:
    """Share the processor's cores out, and give a signal time, unless that has been decided."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = config.num_threads or max(1, (cores or 1) // config.launcher.num_processes)
    grace = str(math.ceil(config.launcher.timeout_seconds))
    return {
        "OMP_NUM_THREADS": str(threads),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": grace,  # torch 2.12 and newer
        **os.environ,
    }


def _wait(command: Sequence[str], environment: dict[str, str]) -> tuple[int, int | None]:
    """Run to the end; signals go on to the workers, which save and stop by themselves.

    Returns the exit status, and the first signal that came.
    """
    process = subprocess.Popen(command, env=environment)
    stopped: int | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = stopped or number
        process.send_signal(number)

    previous = {number: _handle(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return process.wait(), stopped
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        for number, handler in previous.items():
            _handle(number, handler)


def _handle(number: int, handler: Any) -> Any:
    """Set a signal handler where this is allowed: in the main thread only."""
    try:
        return signal.signal(number, handler)
    except ValueError:
        return None

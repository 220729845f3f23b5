"""`python -m speculators.launch.worker FOLDER`: one process of a run, started by the agent."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from speculators.config.loading import load_run_config
from speculators.config.schema import Config
from speculators.errors import LaunchError, SpeculatorsError
from speculators.launch import train
from speculators.launch.agent import SIGNALS
from speculators.launch.handover import ARGV_FILE, CONFIG_FILE, Handover
from speculators.launch.verifier_stage import choose_device
from speculators.training.ranks import Ranks

_WITHOUT_END = datetime.timedelta(days=365)


def main(folder: Path) -> int:
    """Join the other processes, train, and return the exit status."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    rank = int(os.environ["RANK"])
    try:
        config = load_run_config(folder / CONFIG_FILE)
        argv = json.loads((folder / ARGV_FILE).read_text(encoding="utf-8"))
        device = own_device(
            config.device, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        )
        train.run(dataclasses.replace(config, device=str(device)), argv, _join(config, device))
    except SpeculatorsError as error:
        Handover(folder.parent).report(rank, str(error), error.exit_code)
        return error.exit_code
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def own_device(name: str, local_rank: int, num_processes: int) -> torch.device:
    """Return the device of a process: the one of its number, where there are several.

    Args:
        name: as configured.
        local_rank: number of the process on this machine.
        num_processes: processes on this machine.

    Raises:
        LaunchError: there are more processes than devices for them.
    """
    device = choose_device(name)
    if device.type == "cpu":
        return device
    if device.index is not None and num_processes > 1:
        raise LaunchError(
            f"device={name}: one device for launcher.num_processes={num_processes}: use "
            f"device={device.type}, which gives each process its own"
        )
    found = torch.accelerator.device_count()
    if num_processes > found:
        raise LaunchError(
            f"launcher.num_processes={num_processes}: each needs a device of its own, and this "
            f"machine has {found} ({device.type}); use {found} or fewer, or device=cpu"
        )
    index = local_rank if device.index is None else device.index
    torch.accelerator.set_device_index(index)
    return torch.device(device.type, index)


def _join(config: Config, device: torch.device) -> Ranks:
    """Form the group of all processes, and a second one for decisions on the CPU."""
    timeout = datetime.timedelta(seconds=config.launcher.timeout_seconds)
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
    dist.init_process_group(
        backend, timeout=timeout, device_id=None if device.type == "cpu" else device
    )
    control = dist.new_group(backend="gloo", timeout=_WITHOUT_END)
    return Ranks(dist.get_rank(), dist.get_world_size(), control)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

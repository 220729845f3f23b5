"""Several processes of one run on this machine's CPU, for tests."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from speculators.training.ranks import Ranks

_TIMEOUT = datetime.timedelta(seconds=120)
_LOADED = ["torch.distributed", "speculators.training.trainer"]
"""What a server of processes imports once: it takes longer than most tests."""


def run_distributed(function: Callable[..., None], world_size: int, *arguments: Any) -> None:
    """Call `function(ranks, *arguments)` in `world_size` new processes joined by gloo.

    Args:
        function: importable by name; an exception in any process is raised here.
        world_size: how many.
        arguments: what can be pickled.
    """
    multiprocessing.set_forkserver_preload(_LOADED)
    with tempfile.TemporaryDirectory() as folder:
        start_processes(
            _join,
            (world_size, str(Path(folder) / "meeting"), function, arguments),
            world_size,
            start_method="forkserver",
        )


def _join(
    rank: int, world_size: int, meeting: str, function: Callable[..., None], arguments: Any
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size, timeout=_TIMEOUT
    )
    try:
        control = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        function(Ranks(rank, world_size, control), *arguments)
    finally:
        dist.destroy_process_group()

"""How much memory a run, or a part of a step, has needed."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory used so far: of the CUDA device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class DevicePeak:
    """Peak of the bytes a CUDA device holds beyond those of now, also of parts inside parts.

    Its allocator keeps one peak, which begins anew with every part: what lay before is kept here.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._base = torch.cuda.memory_allocated(device)
        self._peak = 0

    def begin(self) -> int:
        """Forget the peak so far and return it: a part begins."""
        before = self._seen()
        torch.cuda.reset_peak_memory_stats(self._device)
        self._peak = self._seen(0)
        return before

    def end(self, before: int) -> int:
        """Return the peak since `begin` returned `before`, and go on with the whole's."""
        mine = self._seen()
        self._peak = max(mine, before)
        return mine

    def _seen(self, least: int | None = None) -> int:
        found = torch.cuda.max_memory_allocated(self._device) - self._base
        return max(found, self._peak if least is None else least)

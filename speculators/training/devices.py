"""What devices can do: peak arithmetic and memory, from their makers' data sheets."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

_SIZE = 1024
_ROUNDS = 8


@dataclass(frozen=True)
class Device:
    """One accelerator, or the CPU of this machine.

    Attributes:
        name: as in `plan.device`, or as the driver calls it.
        type: cuda or cpu.
        memory_bytes: all of its memory.
        peak_flops: dense products per second, bf16 on an accelerator and fp32 on a CPU; None where
            nobody has said.
        source: where the peak is from.
    """

    name: str
    type: str
    memory_bytes: int
    peak_flops: float | None
    source: str


_SHEET = "data sheet, dense bf16"
DEVICES = {
    "h200": Device("h200", "cuda", 141 * 10**9, 989.4e12, _SHEET),
    "h100": Device("h100", "cuda", 80 * 2**30, 989.4e12, _SHEET),
    "a100": Device("a100", "cuda", 80 * 2**30, 312e12, _SHEET),
    "rtx4090": Device("rtx4090", "cuda", 24 * 2**30, 165.2e12, _SHEET),
}
"""Devices by name: SXM versions with 141 or 80 GB, the card with 24 GB."""

_SLOWER = ("h100pcie", "h100nvl", "h200nvl", "laptop", "mig")
"""Versions that carry one of the names and have other peaks, which nobody has put down here."""


def describe_device(device: torch.device) -> Device:
    """Return what is known of a device of this machine; a CPU's peak is measured, in a moment."""
    if device.type == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        source = f"measured: fp32 product, {torch.get_num_threads()} threads"
        return Device("cpu", "cpu", memory, _measured_flops(), source)
    if device.type != "cuda":
        return Device(str(device), device.type, 0, None, "not known")
    found = torch.cuda.get_device_properties(device)
    peak, source = _peak(found.name)
    return Device(found.name, "cuda", found.total_memory, peak, source)


def _peak(name: str) -> tuple[float | None, str]:
    """Return the peak of an accelerator by what its driver calls it, and where that is from."""
    words = name.lower().replace(" ", "")
    known = next((d for key, d in DEVICES.items() if key in words), None)
    if known is None or any(version in words for version in _SLOWER):
        return None, "not known"
    return known.peak_flops, known.source


def _measured_flops() -> float:
    a = torch.ones(_SIZE, _SIZE)
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return 2.0 * _SIZE**3 / best

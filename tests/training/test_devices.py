"""A peak is that of the very device, or none."""

from __future__ import annotations

import pytest
import torch

from speculators.training.devices import DEVICES, _peak, describe_device


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_peaks_by_what_drivers_say(called: str, name: str | None) -> None:
    peak, source = _peak(called)
    assert peak == (None if name is None else DEVICES[name].peak_flops)
    assert (source == "not known") == (name is None)


def test_a_cpu_is_measured() -> None:
    found = describe_device(torch.device("cpu"))
    assert found.peak_flops is not None
    assert found.peak_flops > 1e8
    assert found.memory_bytes > 2**28

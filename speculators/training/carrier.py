"""Brings packed rows to the device while it works on something else."""

from __future__ import annotations

import torch

from speculators.data.types import PackedBatch


class Carrier:
    """Copies rows in a stream of their own, where the device has streams.

    The host runs ahead of a GPU, so the copy of a row overlaps with the step before it; the row's
    own computation waits for the copy, on the device. Rows should lie in pinned memory.

    Args:
        device: where rows go.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        has_streams = device.type == "cuda" and torch.cuda.is_available()
        self._stream = torch.cuda.Stream(device) if has_streams else None

    def bring(self, row: PackedBatch) -> PackedBatch:
        """Return the row on the device."""
        if self._stream is None:
            return row.to(self._device)
        with torch.cuda.stream(self._stream):
            here = row.to(self._device)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for tensor in here.tensors:  # their memory may not be used again before that is done
            tensor.record_stream(computing)
        return here

"""Tensors between the host and an accelerator, without waiting for what is computed there."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def send(tensor: Shaped[Tensor, "..."], device: torch.device | str) -> Shaped[Tensor, "..."]:
    """Return `tensor` on `device`.

    From the host to a GPU the copy takes its turn among the kernels and nobody waits for it: from
    ordinary memory the driver would wait, so the tensor is pinned first if it is not yet. To the
    host one has to wait (`Later` puts that off).
    """
    device = torch.device(device)
    if tensor.device.type != "cpu" or device.type == "cpu":
        return tensor.to(device)
    if device.type == "cuda" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Later:
    """Numbers on their way from the device to the host, to be waited for when they are needed.

    Args:
        numbers: their content at this moment counts.
    """

    def __init__(self, numbers: Float[Tensor, "number"]) -> None:
        self._numbers = numbers.detach()
        self._arrived: torch.cuda.Event | None = None
        if numbers.device.type == "cuda" and torch.cuda.is_available():
            host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers = host.copy_(self._numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(numbers.device))

    def values(self) -> list[float]:
        """Return them, waiting if they have not arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()

"""What vLLM's CPU build lacks, and everybody else has. vLLM loads this in each of its processes.

Two things, found by measuring:

1. The connector that writes hidden states copies them off the device on a stream of its own into
   pinned memory. On a CPU there is neither, and the first finished request would end the engine.
   Everything happens at once there, so inside that one module `torch` is replaced by a view of it
   in which streams and events do nothing.
2. A DFlash drafter norms the context keys of all its layers in one call, with one row of weights
   per layer. The CPU's kernel takes the first row for every layer: the second layer and all others
   see wrong keys, which costs acceptance and nothing else, for drafts are verified. (The kernels of
   Intel GPUs had the same fault: vLLM pull request 56431.)
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

_CONNECTOR = "vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector"


class _Done:
    """A stream or an event where all work is done when it is asked for."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:  # record, synchronize, wait_event, ...
        return lambda *_, **__: None


class _View:
    """A module with some names replaced."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def register() -> None:
    """Mend both, where there is no accelerator."""
    import torch

    if torch.accelerator.is_available():
        return
    _mend_connector(torch)
    _mend_norm()


def _mend_connector(torch: Any) -> None:
    def empty_like(*arguments: Any, pin_memory: bool = False, **options: Any) -> Any:
        return torch.empty_like(*arguments, **options)

    cuda = _View(torch.cuda, Event=_Done, Stream=_Done, stream=lambda _: contextlib.nullcontext())
    connector: Any = importlib.import_module(_CONNECTOR)
    connector.torch = _View(torch, cuda=cuda, empty_like=empty_like)


def _mend_norm() -> None:
    operations: Any = importlib.import_module("vllm._custom_ops")
    one_weight = operations.rms_norm

    def rms_norm(out: Any, states: Any, weight: Any, epsilon: float) -> None:
        """Norm with one weight for all rows, or with one for each of the first axis."""
        if weight is None or weight.dim() == 1:
            return one_weight(out, states, weight, epsilon)
        for place, rows, own in zip(out, states, weight, strict=True):
            one_weight(place, rows, own, epsilon)

    operations.rms_norm = rms_norm

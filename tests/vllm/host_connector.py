"""Lets vLLM's hidden-states connector run where there is no accelerator.

The connector copies states off the device on a stream of its own into pinned memory. On a CPU
there is neither, and the first finished request would end the engine. Everything happens at once
there, so inside that one module `torch` is replaced by a view of it in which streams and events do
nothing. vLLM finds this plugin by its entry point and loads it in each of its processes.
"""

from __future__ import annotations

import contextlib
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
    import importlib

    import torch

    if torch.accelerator.is_available():
        return

    def empty_like(*arguments: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return torch.empty_like(*arguments, **options)

    cuda = _View(torch.cuda, Event=_Done, Stream=_Done, stream=lambda _: contextlib.nullcontext())
    connector: Any = importlib.import_module(_CONNECTOR)
    connector.torch = _View(torch, cuda=cuda, empty_like=empty_like)

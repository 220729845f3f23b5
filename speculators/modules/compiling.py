"""Parts of a drafter that `torch.compile` may fuse, and how many graphs it has made of them.

A region is a function of tensors and weights alone: no host data, no shape that depends on values.
Its sizes are symbols, so it is compiled once for every kind of layer, whatever the rows hold.
Nothing is compiled unless `fused` is open; drafting and validation run as written.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_fusing = False
_num_graphs = 0


def region(function: Callable[P, R]) -> Callable[P, R]:
    """Declare that a function may be compiled, as a whole."""
    compiled: Callable[P, R] | None = None

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        nonlocal compiled
        if not _fusing or torch.compiler.is_compiling():
            return function(*args, **options)
        if compiled is None:
            # Not the wrapper that checks annotations in tests, which cannot be traced.
            compiled = compile_counted(inspect.unwrap(function), dynamic=True, fullgraph=True)
        return compiled(*args, **options)

    return call


@contextmanager
def fused(on: bool) -> Iterator[None]:
    """Let regions be compiled inside the block, or not."""
    global _fusing
    before, _fusing = _fusing, on
    try:
        yield
    finally:
        _fusing = before


def is_fusing() -> bool:
    """Whether regions are being compiled."""
    return _fusing


def compile_counted(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    """Return `torch.compile(function, **options)`, whose graphs are counted."""
    return torch.compile(function, backend=_counting_backend, **options)


def num_graphs() -> int:
    """Return how many graphs were compiled in this process: more of them mean new shapes."""
    return _num_graphs


def compiler_problem(device: torch.device) -> str | None:
    """Return why nothing can be compiled for a device, in a few words, or None."""
    try:
        with torch.no_grad():
            compile_counted(_probe, fullgraph=True)(torch.zeros(8, device=device))
    except Exception as error:
        first = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {first[0]}"
    return None


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


def _counting_backend(graph: Any, inputs: Any, **options: Any) -> Callable[..., Any]:
    global _num_graphs
    _num_graphs += 1
    dynamo: Any = importlib.import_module("torch._dynamo")
    settings: Any = importlib.import_module("torch._inductor.config")
    # This pass, for GPUs alone, cannot split sizes like 32 * (anchors + 1) and fails (CantSplit) on
    # the backward pass of long rows. It would spare a norm's gradient one pass over memory.
    if hasattr(settings.triton, "mix_order_reduction"):
        patches = {"triton.mix_order_reduction": False, **options.pop("config_patches", {})}
        options["config_patches"] = patches
    return dynamo.lookup_backend("inductor")(graph, inputs, **options)

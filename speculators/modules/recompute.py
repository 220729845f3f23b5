"""Parts of a pass that are computed again in the backward pass: memory for time."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch
from torch.utils.checkpoint import checkpoint

from speculators.modules.compiling import fused, is_fusing

P = ParamSpec("P")
R = TypeVar("R")


def recomputed(on: bool, function: Callable[P, R], *values: P.args, **options: P.kwargs) -> R:
    """Call a function of tensors without randomness; keep its inputs only.

    Args:
        on: False keeps everything, as without this call.
        function: what to compute, and to compute again.
        values: its arguments.
        options: its arguments by name.
    """
    if not (on and torch.is_grad_enabled()):
        return function(*values, **options)
    fusing = is_fusing()  # what is computed again must be what was computed, compiled or not

    def compute(*values: P.args, **options: P.kwargs) -> R:
        with fused(fusing):
            return function(*values, **options)

    again = checkpoint(compute, *values, use_reentrant=False, preserve_rng_state=False, **options)
    return cast(R, again)

"""Leaving no trace: evaluation may not change the training around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def inference(*modules: nn.Module | None) -> Iterator[None]:
    """Switch modules to eval mode without gradients; restore every submodule's mode at the end.

    `torch.inference_mode` is not used: a table a module caches inside it could not take part in
    a later backward pass.
    """
    parts = [part for module in modules if module is not None for part in module.modules()]
    modes = [part.training for part in parts]
    for part in parts:
        part.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode

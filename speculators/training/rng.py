"""Global random states: what a checkpoint keeps, and what validation must leave as it was.

Anchors and noise are drawn from (seed, step, row) and need no state; these are for code that
draws from the global generators all the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from speculators.errors import CheckpointError


def capture_rng() -> dict[str, Any]:
    """Return the states of Python, NumPy, torch and each CUDA device, as plain tensors.

    Everything in it is loadable with `torch.load(..., weights_only=True)`.
    """
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "state": torch.tensor(numbers), "gauss": gauss},
        "numpy": {
            "kind": str(kind),
            "state": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Put the states of `capture_rng` back; devices that are not here are left out.

    Raises:
        CheckpointError: the file holds something else.
    """
    try:
        python, numpy = state["python"], state["numpy"]
        random.setstate((python["version"], tuple(python["state"].tolist()), python["gauss"]))
        keys = numpy["state"].numpy().astype(np.uint32)
        np.random.set_state(
            (numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"])
        )
        torch.set_rng_state(state["torch"].cpu())
        devices = state["cuda"][: torch.cuda.device_count()]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"rng_state_rank0.pt: is damaged ({error})") from error
    for index, value in enumerate(devices):
        torch.cuda.set_rng_state(value.cpu(), index)


@contextmanager
def untouched_rng() -> Iterator[None]:
    """Run a block without a trace in the global random states."""
    state = capture_rng()
    try:
        yield
    finally:
        restore_rng(state)

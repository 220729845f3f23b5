"""Accuracies per step under the names of the public trainers."""

from __future__ import annotations

from torch import Tensor


def step_accuracies(sums: dict[str, Tensor], counts: dict[str, Tensor], num_steps: int) -> None:
    """Add `full_acc_<t>` and `cond_acc_<t>`, steps counted from 0, beside `prefix_<t + 1>`.

    `full_acc_t`: chains with all steps supervised that are right from step 0 to t. `cond_acc_t`:
    those right at t among those right before it.

    Args:
        sums: numerators, as `training_metrics` returns them.
        counts: denominators.
        num_steps: steps of a chain.
    """
    before = counts["prefix_1"]
    for t in range(num_steps):
        right = sums[f"prefix_{t + 1}"]
        sums[f"full_acc_{t}"], counts[f"full_acc_{t}"] = right, counts["prefix_1"]
        sums[f"cond_acc_{t}"], counts[f"cond_acc_{t}"] = right, before
        before = right

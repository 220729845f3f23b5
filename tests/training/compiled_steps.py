"""Steps of an algorithm with and without `torch.compile`, in a process of its own.

The checks of annotations that tests install cannot be traced. Prints JSON: the steps, or why
nothing can be compiled here.
"""

from __future__ import annotations

import json
import sys

import torch

from algorithms.rows import make_batch
from algorithms.test_every_algorithm import build, teacher
from speculators.algorithms.base import StepContext
from speculators.modules.compiling import compiler_problem, fused, num_graphs


def main(name: str, again: str) -> None:
    """Compare losses and gradients over rows of several shapes.

    The backward pass lies outside of what is fused, as in a trainer's step.
    """
    torch.set_num_threads(1)
    if (problem := compiler_problem(torch.device("cpu"))) is not None:
        json.dump(problem, sys.stdout)
        return
    drafter = build(name, num_layers=3, activation_checkpointing=again == "recompute")
    found = []
    for step, lengths in enumerate([(24, 16), (30,), (17, 9, 12)]):
        seen = []
        for on in (False, True):
            drafter.zero_grad()
            with fused(on):
                output = drafter.compute_loss(make_batch(lengths), teacher(), StepContext(0, step))
            output.loss_sum.backward()
            gradients = [p.grad.flatten() for p in drafter.parameters() if p.grad is not None]
            seen.append((float(output.loss_sum.detach()), torch.cat(gradients)))
        (plain, expected), (loss, gradient) = seen
        apart = float((gradient - expected).abs().max() / expected.abs().max())
        found.append({"losses": [plain, loss], "apart": apart, "graphs": num_graphs()})
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])

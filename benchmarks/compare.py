"""Drafters of several runs beside each other: acceptance, and the time of what each of them does.

    python benchmarks/compare.py RUN_A RUN_B ...

RUN is the folder of a finished run on the same verifier. Acceptance and speed-up are those of its
own evaluation (there, decoding with and without the drafter takes turns). Times are measured here,
the runs taking turns, the fastest of all rounds: a training step (forward and backward on one
packed row) and a proposal after three newly confirmed tokens.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from speculators.algorithms.base import Drafter, StepContext
from speculators.config.loading import load_run_config
from speculators.conversion.layout import read_model
from speculators.data.loader import RowLoader
from speculators.data.types import PackedBatch
from speculators.launch.data_stage import prepare_data
from speculators.launch.states_stage import open_source
from speculators.launch.verifier_stage import Verifier

ROUNDS, CONTEXT, NEW = 12, 96, 3


def main(folders: list[Path]) -> None:
    """Print one line per run."""
    torch.set_num_threads(1)
    runs = [load(folder) for folder in folders]
    steps = [fastest(training_step(*run)) for run in runs]
    proposals = [fastest(proposal(run[0])) for run in runs]
    for _ in range(ROUNDS):
        for index, (drafter, row, teacher) in enumerate(runs):
            steps[index] = min(steps[index], fastest(training_step(drafter, row, teacher)))
            proposals[index] = min(proposals[index], fastest(proposal(drafter)))
    print("algorithm  drafted  weights   tau   95 %          step ms  proposal ms  speed-up")
    for folder, (drafter, _, _), step, draft in zip(folders, runs, steps, proposals, strict=True):
        found = json.loads((folder / "evaluation.json").read_text())
        low, high = found["acceptance_length_ci95"]
        weights = sum(p.numel() for p in drafter.trainable_parameters().values())
        print(
            f"{drafter.config.name:10s} {drafter.num_draft_tokens:7d} {weights:8,d} "
            f"{found['acceptance_length']:6.3f} ({low:.2f} to {high:.2f}) {1e3 * step:8.1f} "
            f"{1e3 * draft:10.2f} {found['speedup']:10.2f}   per position "
            + " ".join(f"{share:.3f}" for share in found["acceptance_per_position"])
        )


def load(folder: Path) -> tuple[Drafter[Any], PackedBatch, Any]:
    """Return the best drafter of a run, one of its packed rows with states, and the teacher."""
    best = folder / "checkpoints" / "checkpoint_best"
    config = load_run_config(best / "run.yaml")
    verifier = Verifier(config)
    data = prepare_data(config, verifier)
    drafter = read_model(best, spec=verifier.spec, tables=verifier.tables())
    layer_ids = list(drafter.config.target_layer_ids or ())
    source = open_source(config, verifier, layer_ids)
    loader = RowLoader(
        data.train, source, sequence_length=config.training.sequence_length,
        num_aux_layers=len(layer_ids), hidden_size=verifier.spec.hidden_size, seed=0, shuffle=True,
    )  # fmt: skip
    row = next(iter(loader.iterate(epoch=0)))
    source.close()
    return drafter, row, verifier.head()


def training_step(drafter: Drafter[Any], row: PackedBatch, teacher: Any) -> Callable[[], float]:
    """Return a timed forward and backward pass."""

    def run() -> float:
        begin = time.perf_counter()
        drafter.train()
        drafter.compute_loss(row, teacher, StepContext(0, 0)).loss_sum.backward()
        return time.perf_counter() - begin

    return run


def proposal(drafter: Drafter[Any]) -> Callable[[], float]:
    """Return a timed proposal in the middle of an answer."""
    session, spec = drafter.eval().new_session(), drafter.spec
    g = torch.Generator().manual_seed(0)

    def advance(count: int) -> float:
        states = len(drafter.config.target_layer_ids or ()), spec.hidden_size
        aux = torch.randn(count, *states, generator=g)
        tokens = torch.randint(0, spec.num_tokens, (count,), generator=g)
        begin = time.perf_counter()
        session.propose(aux, tokens)
        return time.perf_counter() - begin

    advance(CONTEXT)
    return lambda: advance(NEW)


def fastest(run: Callable[[], float]) -> float:
    """Return the shortest of three runs."""
    return min(run() for _ in range(3))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])

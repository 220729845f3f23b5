"""Examining the drafter beside training, without a trace in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speculators.algorithms.base import Drafter
from speculators.errors import SpeculatorsError
from speculators.evaluation.inference import inference
from speculators.training.rng import untouched_rng
from speculators.training.weights import TrainedWeights

Certify = Callable[[Drafter[Any], Path | None], None]
"""Examines a drafter as it would be served, and the folder it has just been written to (None before
the first step), to which it may add files. A `SpeculatorsError` before the first step stops the
run."""


def certify_undisturbed(
    certify: Certify,
    drafter: Drafter[Any],
    folder: Path | None,
    arithmetic: contextlib.AbstractContextManager[Any],
) -> None:
    """Examine; module modes and every global random state are put back.

    Args:
        certify: what to do.
        drafter: the weights that would be saved.
        folder: where they were written, or None.
        arithmetic: autocast of the run.
    """
    with untouched_rng(), inference(drafter), arithmetic:
        certify(drafter, folder)


def certify_start(
    certify: Certify, weights: TrainedWeights, arithmetic: contextlib.AbstractContextManager[Any]
) -> None:
    """Examine before the first step; all ranks stop together.

    Args:
        certify: what to do; the main process does it.
        weights: of the drafter in training.
        arithmetic: autocast of the run.

    Raises:
        SpeculatorsError: what `certify` raised.
    """
    problem: SpeculatorsError | None = None
    with weights.servable() as drafter:
        if drafter is not None:
            try:
                certify_undisturbed(certify, drafter, None, arithmetic)
            except SpeculatorsError as error:
                problem = error
    problem = weights.ranks.share(problem)
    if problem is not None:
        raise problem

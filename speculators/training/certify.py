"""Examining the drafter beside training, without a trace in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speculators.algorithms.base import Drafter
from speculators.conversion.folders import Content
from speculators.errors import SpeculatorsError
from speculators.evaluation.inference import inference
from speculators.training.rng import untouched_rng
from speculators.training.weights import TrainedWeights

Accompany = Callable[[Path], None]
"""Adds files to a checkpoint that has just been written; maybe in another thread."""

Certify = Callable[[Drafter[Any], Content | None], Accompany]
"""Examines a drafter as it would be served, and what is about to be written of it (None before the
first step). A `SpeculatorsError` before the first step stops the run."""

Arithmetic = Callable[[], contextlib.AbstractContextManager[Any]]
"""Autocast of the run."""


def certify_undisturbed(
    certify: Certify, drafter: Drafter[Any], content: Content | None, arithmetic: Arithmetic
) -> Accompany:
    """Examine; module modes and every global random state are put back.

    Args:
        certify: what to do.
        drafter: the weights that would be saved.
        content: what is about to be written of them, or None.
        arithmetic: of the run.
    """
    with untouched_rng(), inference(drafter), arithmetic():
        return certify(drafter, content)


def certify_start(certify: Certify, weights: TrainedWeights, arithmetic: Arithmetic) -> None:
    """Examine before the first step; all ranks stop together.

    Args:
        certify: what to do; the main process does it.
        weights: of the drafter in training.
        arithmetic: of the run.

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

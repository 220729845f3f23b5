"""What holds for every test: one thread, no network, no telemetry, shapes checked at run time."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.update(
    {
        "DO_NOT_TRACK": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
    }
)

import jaxtyping

from speculators.config.discovery import algorithms

# Annotations of tensor code are checked in tests and only there, so training pays nothing. The
# schemas are loaded before, hence left alone: a half-filled one is legal until it is validated.
algorithms()
jaxtyping.install_import_hook(
    [
        "speculators.algorithms",
        "speculators.attention",
        "speculators.data",
        "speculators.evaluation",
        "speculators.hidden_states",
        "speculators.modules",
        "speculators.training",
        "speculators.verifier",
    ],
    "typechecking.check",
)

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tests compare numbers, and several run side by side: one thread each."""
    torch.set_num_threads(1)


_TESTED_ELSEWHERE = {
    *("launch", "sweep", "doctor", "plan"),
    *("test_families.py", "test_overfitting.py", "test_real_models.py", "test_resume_exact.py"),
}
"""Folders and files of tests that run whole parts of the product."""


@pytest.fixture(autouse=True, scope="module")
def _whole_runs_are_short(request: pytest.FixtureRequest) -> Iterator[None]:
    """In tests of whole runs, leave out what costs as much as the run and is tested elsewhere.

    Annotations are checked where the annotated code has its own tests. Figures are drawn in the
    tests of the report and in those of the train command.
    """
    path = request.path
    if _TESTED_ELSEWHERE.isdisjoint({path.parent.name, path.name}):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        if path.name != "test_train.py":
            patch.setattr("speculators.evaluation.report.page.charts", lambda files: [])
        yield

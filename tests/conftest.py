"""What holds for every test: one thread, no network, no telemetry, shapes checked at run time."""

from __future__ import annotations

import os

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

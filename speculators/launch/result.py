"""`result.json`: what a run reached, for people, sweeps and scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speculators.algorithms.base import Drafter
from speculators.conversion.durable import replace_text
from speculators.evaluation.forecast import forecast_speedup
from speculators.evaluation.result import EvaluationResult
from speculators.training.result import TrainResult

_DECODED = (
    "acceptance_length",
    "acceptance_length_ci95",
    "acceptance_rate",
    "acceptance_per_position",
    "lossless_prompts",
    "num_prompts",
    "verifier_calls_saved",
    "speedup",
    "distinct_4gram_share",
)


def summarise(
    trained: TrainResult, evaluation: EvaluationResult | None, drafter: Drafter[Any]
) -> dict[str, Any]:
    """Return the content of `result.json`.

    Acceptance is that of real decoding; without an evaluation its keys are null, and what the
    best checkpoint was chosen by stands under `best_value`.
    """
    decoded = {} if evaluation is None else evaluation.to_dict()
    best = trained.best_checkpoint
    length = decoded.get("acceptance_length")
    forecast = None if length is None else forecast_speedup(length, drafter, drafter.spec)
    return {
        **{key: decoded.get(key) for key in _DECODED},
        "forecast_speedup": forecast,
        "best_value": trained.best_value,
        "stopped": trained.stopped,
        **_expected(trained),
        "steps": trained.steps,
        "epochs": trained.epochs,
        "train_seconds": trained.seconds,
        "train_tokens": trained.tokens,
        "train_tokens_per_second": trained.tokens_per_second,
        "peak_memory_bytes": trained.peak_memory_bytes,
        "checkpoint": None if best is None else str(best.parent / "checkpoint_best"),
    }


def _expected(trained: TrainResult) -> dict[str, Any]:
    """Return what an early end left open; null where the run got to its last step."""
    keys = ("forecast_acceptance_length", "forecast_acceptance_length_ci95")
    found = {} if trained.forecast is None else trained.forecast.to_dict()
    return {key: found.get(key) for key in keys}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file aside and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(values, indent=2) + "\n")

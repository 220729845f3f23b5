"""Every number that is written down has its definition in docs/metrics.md."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.engine_metrics import DraftCounters
from speculators.evaluation.load import Level, Speed
from speculators.evaluation.paired import Difference
from speculators.evaluation.result import Cost, EvaluationResult
from speculators.evaluation.slices import PromptRow
from speculators.evaluation.walk import WalkResult
from speculators.hidden_states.online.streaming import Streamed

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
_WORDS = {"definition", "settings", "examples", "suite", "category", "prompt_id", "fingerprint"}
"""Texts and identities, no numbers."""


def defined() -> set[str]:
    return set(re.findall(r"`([a-z0-9_]+)`", DOCUMENT.read_text(encoding="utf-8")))


def keys(found: dict[str, Any]) -> set[str]:
    return {key.removesuffix("_ci95") for key in found}


def test_evaluations() -> None:
    acceptance = Acceptance.from_runs([[1, 0], [2, 1]], 2)
    row = PromptRow("1", None, "maths", "", 5, 9, 1.0)
    result = EvaluationResult(
        acceptance, (row, row), {"0-63": acceptance}, Cost(), None, None, (), 1.0, {}, ()
    )
    found = result.to_dict()
    parts = [part for name in ("categories", "context_lengths") for part in found[name].values()]
    walked = WalkResult(acceptance, acceptance, 1, 1, 1).to_dict()
    names = set().union(*map(keys, [found, walked, *parts, *found["prompts"]]))
    assert names - _WORDS - defined() == set()


def test_servers_and_comparisons() -> None:
    answer = Streamed([1, 2], [(0.1, 1), (0.2, 1)])
    speed = Speed((answer,), 1.0, DraftCounters(1, 2, 1, (1, 0)))
    names = keys(Level(1, speed, speed).to_dict()) | keys(speed.to_dict())
    names |= {field.name for field in fields(Difference)} | {"significant", "speed_ratio"}
    assert names - {"concurrency", "speculative", "plain"} - defined() == set()

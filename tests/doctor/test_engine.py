"""A server beside this process: its counters and answers against decoding here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from doctor.patient import REDUCED, drafter, in_training, probes
from speculators.algorithms.base import Drafter
from speculators.doctor.causes import (
    DAMAGED_CHECKPOINT,
    OTHER_ENGINE,
    OTHER_VERIFIER,
    STALE_VOCABULARY,
    WRONG_CAUSALITY,
    WRONG_LAYER_IDS,
    WRONG_ROPE,
    Cause,
)
from speculators.doctor.drafting import ProbeDrafts
from speculators.doctor.engine import EngineAnswers
from speculators.doctor.finding import Finding, Verdict
from speculators.doctor.stages import engine
from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.result import Cost, EvaluationResult, Mismatch
from speculators.evaluation.slices import PromptRow

HERE = [[2, 0, 3, 1] * 20, [1, 1, 2, 0] * 20]


def result(runs: Sequence[Sequence[int]], *mismatches: Mismatch) -> EvaluationResult:
    rows = [PromptRow(str(i), None, None, "", 5, 9, 1.0) for i in range(len(runs))]
    return EvaluationResult(
        acceptance=Acceptance.from_runs(runs, 4),
        rows=tuple(rows),
        by_context={},
        speculative=Cost(),
        plain=None,
        lossless_prompts=None,
        mismatches=mismatches,
        distinct_4gram_share=1.0,
        settings={},
        examples=(),
    )


def check(served: EvaluationResult) -> Finding:
    here = result(HERE)
    answers = EngineAnswers("vllm 0.32.0", served, here, lambda: here.acceptance)
    return engine.check(dataclasses.replace(in_training(drafter("dflash")), engine=answers))


def test_equal_counters_agree() -> None:
    found = check(result(HERE))
    assert found.verdict is Verdict.passed
    assert "counters of 2 of 2 requests equal" in found.measured


def test_one_draft_more_or_less_is_rounding() -> None:
    almost = [[*HERE[0][:-1], 2], HERE[1]]
    found = check(result(almost))
    assert found.verdict is Verdict.passed
    assert "counters of 1 of 2 requests equal" in found.measured


def test_other_acceptance_names_the_request_and_the_position() -> None:
    worse = [HERE[0], [min(run, 1) for run in HERE[1]]]
    found = check(result(worse))
    assert (found.verdict, found.cause) == (Verdict.failed, OTHER_ENGINE.name)
    assert found.where == "prompt 1, drafted token 2 (0 against 20 accepted)"
    assert "tau 2.125 served, 2.250 here (-5.56%)" in found.measured


def test_a_server_that_accepts_nothing_has_lost_something() -> None:
    found = check(result([[0] * 80, [0] * 80]))
    assert found.cause == DAMAGED_CHECKPOINT.name
    assert "missing tensor" in found.evidence


@pytest.mark.parametrize(("gap", "verdict"), [(1e-5, Verdict.passed), (0.7, Verdict.failed)])
def test_another_answer_is_a_tie_or_another_verifier(gap: float, verdict: Verdict) -> None:
    found = check(result(HERE, Mismatch("1", 0, 7, 11, 12, gap)))
    assert found.verdict is verdict
    if verdict is Verdict.failed:
        assert (found.cause, found.where) == (OTHER_VERIFIER.name, "token 7 of prompt 1")


SLIDING = {"sliding_window": 4, "num_sliding_layers": 1, "num_layers": 1}
OTHERWISE: dict[str, tuple[str, dict[str, Any], dict[str, Any], Cause, str]] = {
    "layers one higher": (
        *("dflash", {}, {"target_layer_ids": [2, 5, 7]}),
        *(WRONG_LAYER_IDS, "reads layers 2, 5, 7, not 1, 4, 6"),
    ),
    "layers one lower": (
        *("eagle3", {}, {"target_layer_ids": [0, 3, 5]}),
        *(WRONG_LAYER_IDS, "reads layers 0, 3, 5, not 1, 4, 6"),
    ),
    "slots the other way": (
        *("dflash", SLIDING, {"sliding_causal": True}),
        *(WRONG_CAUSALITY, "makes every slot causal"),
    ),
    "another theta": ("dflash", {}, {"rope_theta": 1e6}, WRONG_ROPE, "rope_theta 1,000,000"),
    "no d2t": ("eagle3", {"vocabulary": REDUCED}, {}, STALE_VOCABULARY, "tokens 0 to 29"),
}


def drafted(model: Drafter[Any]) -> list[Tensor]:
    return [ProbeDrafts(model, one).tokens for one in probes(model.config.target_layer_ids)]


@pytest.mark.parametrize("case", OTHERWISE)
def test_what_the_engine_does_otherwise_is_named(case: str) -> None:
    name, base, changes, cause, words = OTHERWISE[case]
    good, other = drafter(name, **base), drafter(name, **base, **changes)
    if base.get("vocabulary"):
        other.token_ids = torch.arange(len(REDUCED))
    right = drafted(good)

    def counters() -> Acceptance:
        """Of prompts whose answers the good drafter knows, drafted by one that it is now."""
        pairs = zip(right, drafted(engine_or_here), strict=True)
        runs = [
            (4 * (a == b).all(-1) + (a != b).any(-1) * (b.sum(-1) % 4)).tolist() for a, b in pairs
        ]
        return Acceptance.from_runs(runs, right[0].shape[1])

    engine_or_here = other
    served = dataclasses.replace(result(HERE), acceptance=counters())
    engine_or_here = good
    here = dataclasses.replace(result(HERE), acceptance=counters())
    before = good.conventions()
    answers = EngineAnswers("vllm 0.32.0", served, here, counters)
    found = engine.check(dataclasses.replace(in_training(good), engine=answers))
    assert (found.verdict, found.cause) == (Verdict.failed, cause.name)
    assert words in found.evidence
    assert good.conventions() == before


def test_without_a_server_it_says_how_to_give_one() -> None:
    found = engine.check(in_training(drafter("dflash")))
    assert (found.verdict, "doctor.endpoint=URL" in found.text) == (Verdict.unchecked, True)
    assert np.isclose(result(HERE).acceptance.length, 2.25)

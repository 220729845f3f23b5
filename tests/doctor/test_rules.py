"""Every rule names its cause from what a run shows, and nothing on a healthy one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from speculators.config.composition import compose
from speculators.data.vocabulary import DraftVocabulary
from speculators.doctor import causes
from speculators.doctor.case import Case
from speculators.doctor.causes import Cause
from speculators.doctor.diagnosis import Certainty, diagnose
from speculators.doctor.finding import Finding, Verdict
from speculators.doctor.rulebook import RULES
from speculators.doctor.rules import bfloat16
from speculators.doctor.signatures import signatures
from speculators.evaluation.report.run_files import RunFiles

K = 4


class Laboratory:
    """Answers what tests ask; the numbers are those of a healthy drafter unless told."""

    def __init__(self, **changes: Any) -> None:
        self.shares = {-1: 0.05, 0: 0.6, 1: 0.06, 2: 0.05}
        self.lengths = {"own": 2.2, "higher": 1.1, "lower": 1.2, "descending": 1.1}
        self.trained, self.held_out_length = 2.4, 2.2
        self.excess_surprise = -0.3
        self.undraftable_share = 0.01
        self.first_supervised = 0.0
        self.vocabulary = DraftVocabulary.full(96)
        vars(self).update(changes)
        self.drafter = SimpleNamespace(
            config=SimpleNamespace(target_layer_ids=[1, 4, 6]), vocabulary=self.vocabulary
        )
        self.verifier = SimpleNamespace(spec=SimpleNamespace(num_layers=8))
        self.data = SimpleNamespace(validation=None)
        self.decoded = SimpleNamespace(length=self.lengths["own"])
        self.walked_held_out = SimpleNamespace(length=self.held_out_length)
        self.newest_held_out = self.walked_held_out
        self.newest_trained_on = SimpleNamespace(length=self.trained)

    def shifted_shares(self, offsets: Sequence[int]) -> dict[int, float]:
        return {offset: self.shares[offset] for offset in offsets}

    def rows(self, samples: Any, layer_ids: list[int]) -> str:
        return {2: "higher", 0: "lower", 6: "descending"}[layer_ids[0]]

    def length(self, rows: str) -> float:
        return self.lengths[rows]

    def supervised_prompts(self) -> float:
        return self.first_supervised


def healthy(tmp_path: Path) -> Case:
    train = {
        "kind": "train", "step": 100, "epoch": 2, "block_acceptance_length": 2.3, "coverage": 0.9,
        **{f"accuracy_{k}": 0.5 for k in range(1, K + 1)},
    }  # fmt: skip
    validation = {
        "kind": "validation", "step": 100, "epoch": 2, "acceptance_length": 2.2,
        "on_policy_share": 0.99, "num_draft_tokens": K,
        "acceptance_per_position": [0.6, 0.35, 0.17, 0.08],
    }  # fmt: skip
    files = RunFiles(
        tmp_path,
        config={"seed": 0},
        metrics=[train, validation],
        result={"epochs": 3.0, "acceptance_length": 2.1},
        evaluation={
            "acceptance_length": 2.1,
            "acceptance_per_position": [0.58, 0.33, 0.14, 0.05],
            "distinct_4gram_share": 0.97,
        },
        data_report={
            "num_samples": 100, "num_tokens": 9000, "num_supervised": 6000,
            "num_fully_supervised": 0,
        },
    )  # fmt: skip
    config = compose("train", ["training.sequence_length=256"])
    laboratory: Any = Laboratory()
    return Case(files, config, lab=laboratory)


def changed(case: Case, **changes: Any) -> Case:
    """The case with other lines, files or laboratory answers."""
    lab: Any = Laboratory(**changes.pop("lab", {}))
    metrics = [{**line, **changes.get(line["kind"], {})} for line in case.files.metrics]
    metrics = [{k: v for k, v in line.items() if v is not None} for line in metrics]
    files = dataclasses.replace(
        case.files,
        metrics=metrics,
        evaluation={**case.files.evaluation, **changes.get("evaluation", {})},
        result={**case.files.result, **changes.get("result", {})},
        data_report={**case.files.data_report, **changes.get("data_report", {})},
    )
    return dataclasses.replace(case, files=files, lab=lab)


def names(case: Case) -> list[str]:
    return [one.cause.name for one in diagnose(case, RULES)]


def test_nothing_is_wrong_with_a_healthy_run(tmp_path: Path) -> None:
    case = healthy(tmp_path)
    assert names(case) == []
    assert names(dataclasses.replace(case, lab=None)) == []
    assert [one.reading for one in signatures(case)] == ["", ""]


PLANTED: dict[str, tuple[Cause, dict[str, Any]]] = {
    "layers one lower than trained": (
        causes.WRONG_LAYER_IDS,
        {
            "evaluation": {"acceptance_length": 1.1},
            "lab": {
                "held_out_length": 1.1,
                "lengths": {"own": 1.1, "higher": 2.2, "lower": 1.0, "descending": 1.0},
            },
        },
    ),
    "layers in descending order": (
        causes.SWAPPED_LAYERS,
        {
            "evaluation": {"acceptance_length": 1.1},
            "lab": {
                "held_out_length": 1.1,
                "lengths": {"own": 1.1, "higher": 1.1, "lower": 1.0, "descending": 2.2},
            },
        },
    ),
    "labels one late": (
        causes.SHIFTED_LABELS,
        {"lab": {"shares": {-1: 0.05, 0: 0.04, 1: 0.6, 2: 0.1}}},
    ),
    "training sees the answer": (
        causes.LEAKING_MASK,
        {
            "train": {"block_acceptance_length": 4.6},
            "evaluation": {"acceptance_length": 1.1},
            "validation": {"acceptance_length": 1.1},
            "lab": {"trained": 1.1, "held_out_length": 1.1},
        },
    ),
    "known by heart": (
        causes.OVERFIT,
        {"train": {"block_acceptance_length": 4.6}, "lab": {"trained": 4.4}},
    ),
    "all-ones mask": (
        causes.ALL_ONES_MASK,
        {
            "data_report": {"num_supervised": 9000, "num_fully_supervised": 100},
            "validation": {"on_policy_share": 0.5},
            "lab": {"first_supervised": 1.0, "excess_surprise": 2.0},
        },
    ),
    "other people's answers": (
        causes.OFF_POLICY,
        {"validation": {"on_policy_share": 0.5}, "lab": {"excess_surprise": 0.9}},
    ),
    "few anchors": (causes.TOO_FEW_ANCHORS, {"train": {"coverage": 0.05}}),
    "one slot trained of four": (
        causes.UNTRAINED_POSITIONS,
        {"train": {f"accuracy_{k}": None for k in range(2, K + 1)}},
    ),
    "a small vocabulary": (
        causes.SMALL_VOCABULARY,
        {
            "lab": {
                "vocabulary": DraftVocabulary(torch.arange(20), 96), "undraftable_share": 0.3
            }
        },
    ),
    "a verifier that loops": (
        causes.LOOPING_ANSWERS, {"evaluation": {"distinct_4gram_share": 0.1}}
    ),
    "one kind of prompt": (
        causes.UNEVEN_SLICES,
        {
            "evaluation": {
                "categories": {
                    "code": {"num_prompts": 9, "acceptance_length": 2.6},
                    "poems": {"num_prompts": 9, "acceptance_length": 1.2},
                }
            }
        },
    ),
    "long contexts": (
        causes.LONG_CONTEXTS,
        {
            "evaluation": {
                "context_lengths": {
                    "64-127": {"num_drafts": 90, "acceptance_length": 2.4},
                    "256-511": {"num_drafts": 90, "acceptance_length": 1.2},
                }
            }
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize(("cause", "changes"), PLANTED.values(), ids=PLANTED.keys())
def test_the_cause_is_named_and_no_other(
    cause: Cause, changes: dict[str, Any], tmp_path: Path
) -> None:
    found = diagnose(changed(healthy(tmp_path), **changes), RULES)
    assert [one.cause for one in found] == [cause]
    assert all((found[0].signature, found[0].test, found[0].change))


@pytest.mark.parametrize("name", ["layers one lower than trained", "training sees the answer"])
def test_without_a_laboratory_a_cause_is_suspected_and_the_test_is_named(
    name: str, tmp_path: Path
) -> None:
    cause, changes = PLANTED[name]
    case = dataclasses.replace(changed(healthy(tmp_path), **changes), lab=None)
    found = diagnose(case, RULES)[0]
    assert found.certainty is Certainty.suspected
    assert found.test.startswith("not made: ")
    assert found.cause in (cause, causes.WRONG_LAYER_IDS, causes.LEAKING_MASK)


def test_sampled_answers_are_not_off_policy(tmp_path: Path) -> None:
    """At temperature 1 the first choice is often not taken, and nothing surprises."""
    case = changed(
        healthy(tmp_path),
        validation={"on_policy_share": 0.6},
        lab={"excess_surprise": 0.03},
    )
    assert names(case) == []


def test_a_failed_stage_settles_everything(tmp_path: Path) -> None:
    failed = Finding(
        "captured states", Verdict.failed, "captured states differ", "layer 1",
        cause="wrong layer ids", evidence="they equal the stream entering layer 2", change="count",
    )  # fmt: skip
    case = changed(healthy(tmp_path), validation={"on_policy_share": 0.1})
    case = dataclasses.replace(case, certificates={"start": [], "step-2": [failed]})
    found = diagnose(case, RULES)
    assert [one.cause for one in found] == [causes.WRONG_LAYER_IDS]
    assert "checkpoint step-2" in found[0].test
    assert found[0].change == "count"


@pytest.mark.parametrize(
    ("change", "share"),
    [(lambda w: w, 0.01), (lambda w: w.to(torch.bfloat16).float(), 1.0)],
    ids=["fp32", "bf16"],
)
def test_weights_that_bf16_holds_are_told(
    change: Callable[[torch.Tensor], torch.Tensor], share: float
) -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    found = bfloat16.rounded_share({"a": change(weight), "norm": torch.ones(64)})
    assert found == pytest.approx(share, abs=0.02)

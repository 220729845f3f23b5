"""Every stage of the chain passes on what is right, and names what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from algorithms.test_every_algorithm import every
from doctor.patient import REDUCED, checkpoint, drafter, in_training
from doctor.planted import FAULTS, Fault
from speculators.config.schema import FloatType
from speculators.data.vocabulary import DraftVocabulary
from speculators.doctor import stages
from speculators.doctor.chain import CHAIN, examine
from speculators.doctor.finding import Finding, Verdict


def named(findings: list[Finding], verdict: Verdict) -> set[str]:
    return {finding.stage for finding in findings if finding.verdict is verdict}


@every
@pytest.mark.parametrize(
    ("vocabulary", "num_layers"), [(None, 1), (REDUCED, 2)], ids=["full", "reduced, two layers"]
)
def test_nothing_differs_where_nothing_is_wrong(
    name: str, vocabulary: DraftVocabulary | None, num_layers: int, tmp_path: Path
) -> None:
    built = drafter(name, vocabulary, num_layers=num_layers)
    beside = examine(in_training(built, tmp_path / "training"))
    assert named(beside, Verdict.failed) == set()
    later = {"template", "verifier", "recorded drafts", "engine"}
    assert named(beside, Verdict.unchecked) == later
    dtype = FloatType.bfloat16 if vocabulary is None else FloatType.float32
    read = examine(checkpoint(built, tmp_path / "later", dtype))
    assert named(read, Verdict.failed) == set()
    assert named(read, Verdict.unchecked) == {"engine"}


@every
def test_bfloat16_training_of_a_float32_verifier_differs_nowhere(name: str) -> None:
    """As on an accelerator: training in bf16, the verifier as it was stored."""
    subject = in_training(drafter(name, None))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = examine(subject)
    assert named(found, Verdict.failed) == set()


def test_no_stage_is_without_a_planted_fault() -> None:
    """A stage that always passes fails a test below; the engine's are in test_engine.py."""
    modules = {module for module in vars(stages).values() if hasattr(module, "check")}
    names = {getattr(m, "STAGE", None) or m.check.stage for m in modules}
    assert len(names) == len(CHAIN)
    assert {stage.name for stage in names} - {fault.stage for fault in FAULTS} == {"engine"}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_first_difference_is_named(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fault.first_failure(tmp_path / "checkpoint", monkeypatch)
    assert (found.stage, found.cause) == (fault.stage, fault.cause.name)

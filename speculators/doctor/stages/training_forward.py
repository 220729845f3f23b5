"""The training pass chooses what decoding drafts, and sees no more than decoding sees.

Decoding drafts after a position. A row that goes on with exactly these tokens must find every slot
right in the training pass; a row that goes on with other tokens must find the first slot wrong, and
made-up states behind the position must change nothing. A pass that copies what it should predict
fails the second, one that computes something else fails the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from speculators.algorithms.base import Drafter, Output, StepContext
from speculators.doctor.causes import LEAKING_MASK, OTHER_FORWARD, SHIFTED_LABELS
from speculators.doctor.drafting import session_drafts, starts_of
from speculators.doctor.finding import Finding, Stage
from speculators.doctor.probe import Probe
from speculators.doctor.stages.drafting import FEWEST_EQUAL
from speculators.doctor.subject import Subject
from speculators.evaluation.inference import inference
from speculators.verifier.head import VerifierHead

STAGE = Stage(
    "training pass",
    "the training pass finds a session's own drafts right and others wrong, whatever states follow",
)
_PLACES = 2
_STATES = (3.0, -5.0)
_SAME_LOSS = 1e-5


@dataclass(frozen=True)
class _Case:
    """One draft: where, and what the session drafted there."""

    drafter: Drafter[Any]
    teacher: VerifierHead
    probe: Probe
    at: int
    drafted: Int[Tensor, "draft"]

    def output(self, tokens: Tensor, num_labels: int, states: float = _STATES[0]) -> Output:
        """Run the training pass on a row that goes on with `tokens`."""
        row = self.probe.continued(self.at, tokens, num_labels + 1, states)
        return self.drafter.compute_loss(row, self.teacher, StepContext(0, 0))

    def right(self, tokens: Tensor, slot: int, num_labels: int | None = None) -> bool | None:
        """Whether the training pass chooses the data's token in a slot; None: it does not say."""
        output = self.output(tokens, num_labels or slot)
        key = f"accuracy_{slot}"
        if key not in output.counts or int(output.counts[key]) < 1:
            return None
        return float(output.sums[key]) == float(output.counts[key])

    def others(self) -> Tensor:
        """Return draftable tokens, each another one than was drafted in its place."""
        vocabulary = self.drafter.vocabulary
        rows = vocabulary.draft_ids()[self.drafted]
        return vocabulary.ids[(rows + 1) % len(vocabulary)]


def check(subject: Subject) -> Finding:
    """Hold the training pass against drafting, at a few positions of every probe."""
    drafter = subject.drafter
    if drafter is None or not subject.probes:
        return STAGE.unchecked("there is no drafter to run")
    with inference(drafter):
        cases = list(_cases(subject, drafter))
        for case, number in cases:
            if found := _leak(case, number):
                return found
        return _agreement(subject, cases)


def _cases(subject: Subject, drafter: Drafter[Any]) -> Iterator[tuple[_Case, int]]:
    for number, probe in enumerate(subject.probes):
        starts = starts_of(drafter, probe)[:_PLACES]
        drafts = session_drafts(drafter, probe, starts)
        for at, drafted in zip(starts, drafts, strict=True):
            yield _Case(drafter, subject.head, probe, at, drafted), number


def _agreement(subject: Subject, cases: list[tuple[_Case, int]]) -> Finding:
    equal = counted = 0
    wrong: tuple[_Case, int, int] | None = None
    for case, number in cases:
        for slot in range(1, len(case.drafted) + 1):
            right = case.right(case.drafted, slot)
            if right is None:
                continue
            equal, counted = equal + right, counted + 1
            if not right and wrong is None:
                wrong = (case, number, slot)
    if not counted:
        return STAGE.unchecked("the training pass does not say which slots are right")
    allowed = 1.0 if subject.is_exact else FEWEST_EQUAL
    measured = f"{equal} of {counted} drafted tokens chosen"
    if wrong is None or equal >= allowed * counted:
        return STAGE.passed(
            "the training pass chooses what a session drafts",
            measured=measured,
            allowed=f"{allowed:.0%}",
        )
    case, number, slot = wrong
    shifted = _is_shifted(case)
    return STAGE.failed(
        SHIFTED_LABELS if shifted else OTHER_FORWARD,
        "the training pass chooses other tokens than a session drafts",
        where=f"slot {slot} after position {case.at} (prompt {number})",
        measured=measured,
        allowed=f"{allowed:.0%}",
        evidence="slot k is trained on the token at a + k + 1" if shifted else "",
    )


def _is_shifted(case: _Case) -> bool:
    """Whether the pass finds the drafts right when they stand one place later."""
    late = torch.cat([case.others()[:1], case.drafted])
    return bool(case.right(late, 1, num_labels=1)) and not case.right(case.drafted, 1)


def _leak(case: _Case, number: int) -> Finding | None:
    """Find out whether the pass sees what it must predict, or states that do not exist yet."""
    where = f"slot 1 after position {case.at} (prompt {number})"
    losses = [float(case.output(case.drafted, 1, states).loss_sum) for states in _STATES]
    difference = abs(losses[0] - losses[1]) / max(abs(losses[0]), 1e-9)
    if not difference <= _SAME_LOSS:
        return STAGE.failed(
            LEAKING_MASK,
            "the training loss changes with states from the newest token on",
            where=where,
            measured=f"relative difference {difference:.2g}",
            allowed=f"{_SAME_LOSS:g}",
        )
    others = case.others()
    if case.right(others, 1) and not case.right(case.drafted, 1):
        return None  # another fault, told apart later
    if case.right(others, 1):
        return STAGE.failed(
            LEAKING_MASK,
            "the training pass chooses whatever token follows",
            where=where,
            measured="a token that decoding does not draft",
            allowed="the drafted one",
        )
    return None

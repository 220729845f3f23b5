"""The training pass chooses what decoding drafts, and sees no more than decoding sees.

Decoding drafts after a position. A row that goes on with exactly these tokens must find every slot
right in the training pass; a row that goes on with other tokens must find the first slot wrong, and
made-up states behind the position must change nothing. A pass that copies what it should predict
fails the second, one that computes something else fails the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from speculators.algorithms.base import Drafter, Output, StepContext
from speculators.doctor.causes import LEAKING_MASK, OTHER_FORWARD, SHIFTED_LABELS
from speculators.doctor.finding import Finding, Stage
from speculators.doctor.probe import Probe
from speculators.doctor.stages.drafting import NOTHING_CLEAR, comparable, fewest_equal
from speculators.doctor.subject import Subject
from speculators.evaluation.inference import inference
from speculators.verifier.head import VerifierHead

STAGE = Stage(
    "training pass",
    "the training pass finds a session's own drafts right and others wrong, whatever states follow",
)
_STATES = (3.0, -5.0)
_SAME_LOSS, _COARSE_LOSS = 1e-5, 1e-3


@dataclass(frozen=True)
class _Case:
    """One draft: where, what the session drafted there, and the slots that can be compared."""

    drafter: Drafter[Any]
    teacher: VerifierHead
    number: int
    probe: Probe
    at: int
    drafted: Int[Tensor, "draft"]
    slots: Sequence[int]

    def place(self, slot: int) -> str:
        return f"slot {slot} after position {self.at} (prompt {self.number})"

    def output(self, tokens: Tensor, num_labels: int, states: float = _STATES[0]) -> Output:
        """Run the training pass on a row that goes on with `tokens`."""
        row = self.probe.continued(self.at, tokens, num_labels + 1, states)
        return self.drafter.compute_loss(row, self.teacher, StepContext(0, 0))

    def chooses(self, tokens: Tensor, slot: int) -> bool | None:
        """Whether the training pass chooses the data's token in a slot; None: it does not say."""
        output = self.output(tokens, slot)
        key = f"accuracy_{slot}"
        if key not in output.counts or int(output.counts[key]) < 1:
            return None
        return float(output.sums[key]) == float(output.counts[key])

    def drafted_up_to(self, slot: int) -> Tensor:
        """Return what was drafted up to a slot, then a token that was not drafted in it."""
        return torch.cat([self.drafted[:slot], self.other(slot)])

    def other(self, slot: int) -> Tensor:
        """Return a draftable token, twice, that is not the one drafted in a slot."""
        vocabulary = self.drafter.vocabulary
        row = vocabulary.draft_ids()[self.drafted[slot - 1]]
        return vocabulary.ids[(row + 1) % len(vocabulary)].repeat(2)


def check(subject: Subject) -> Finding:
    """Hold the training pass against drafting, in one draft of every probe."""
    drafter = subject.drafter
    if drafter is None or not subject.probes:
        return STAGE.unchecked("there is no drafter to run")
    with inference(drafter):
        cases = list(_cases(subject, drafter))
        for case in cases:
            if found := _leak(case, exact=subject.is_exact):
                return found
        return _agreement(subject, cases)


def _cases(subject: Subject, drafter: Drafter[Any]) -> Iterator[_Case]:
    for number, drafts in enumerate(subject.drafts):
        counts = comparable(drafts, exact=subject.is_exact)
        if not drafts.starts:
            continue
        # One draft of each probe, ever further along: each costs as many passes as it has slots.
        which = number % len(drafts.starts)
        yield _Case(
            drafter,
            subject.head,
            number,
            drafts.probe,
            drafts.starts[which],
            drafts.tokens[which],
            (counts[which].nonzero().flatten() + 1).tolist(),
        )


def _agreement(subject: Subject, cases: list[_Case]) -> Finding:
    equal = counted = 0
    wrong: tuple[_Case, int] | None = None
    for case in cases:
        for slot in case.slots:
            right = case.chooses(case.drafted_up_to(slot), slot)
            if right is None:
                continue
            equal, counted = equal + right, counted + 1
            if not right and wrong is None:
                wrong = (case, slot)
    if not counted:
        unsaid = "the training pass does not say which slots are right"
        return STAGE.unchecked(unsaid if any(case.slots for case in cases) else NOTHING_CLEAR)
    allowed = fewest_equal(counted, exact=subject.is_exact)
    measured = f"{equal} of {counted} drafted tokens chosen"
    if wrong is None or equal >= allowed:
        return STAGE.passed(
            "the training pass chooses what a session drafts",
            measured=measured,
            allowed=f"{allowed} or more",
        )
    case, slot = wrong
    shifted = _is_shifted(case)
    return STAGE.failed(
        SHIFTED_LABELS if shifted else OTHER_FORWARD,
        "the training pass chooses other tokens than a session drafts",
        where=case.place(slot),
        measured=measured,
        allowed=f"{allowed} or more",
        evidence="slot k is trained on the token at a + k + 1" if shifted else "",
    )


def _is_shifted(case: _Case) -> bool:
    """Whether the pass finds the drafts right when they stand one place later."""
    late = torch.cat([case.other(1)[:1], case.drafted])
    return bool(case.chooses(late, 1)) and not case.chooses(case.drafted_up_to(1), 1)


def _leak(case: _Case, *, exact: bool) -> Finding | None:
    """Find out whether the pass sees what it must predict, or states that do not exist yet."""
    allowed = _SAME_LOSS if exact else _COARSE_LOSS
    losses = [float(case.output(case.drafted, 1, states).loss_sum) for states in _STATES]
    difference = abs(losses[0] - losses[1]) / max(abs(losses[0]), 1e-9)
    if not difference <= allowed:
        return STAGE.failed(
            LEAKING_MASK,
            "the training loss changes with states from the newest token on",
            where=case.place(1),
            measured=f"relative difference {difference:.2g}",
            allowed=f"{allowed:g}",
        )
    if case.chooses(case.other(1), 1) and case.chooses(case.drafted_up_to(1), 1):
        return STAGE.failed(
            LEAKING_MASK,
            "the training pass chooses whatever token follows",
            where=case.place(1),
            measured="a token that decoding does not draft",
            allowed="the drafted one",
        )
    return None

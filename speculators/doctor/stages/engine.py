"""The engine answers with the same tokens and accepts as many drafts, request by request."""

from __future__ import annotations

from speculators.doctor.causes import DAMAGED_CHECKPOINT, OTHER_ENGINE, OTHER_VERIFIER, Cause
from speculators.doctor.engine import EngineAnswers
from speculators.doctor.finding import Finding, Stage
from speculators.doctor.subject import Subject
from speculators.doctor.suspects import find_culprit, num_equal, same_counters

STAGE = Stage(
    "engine",
    "a running server gives the same answers, with the same number of drafts and accepted tokens",
)
LARGEST_APART = 0.01
"""Allowed relative difference of acceptance lengths, beyond one draft."""
_TIE = {"float32": 1e-3}
_COARSE_TIE = 0.1


def check(subject: Subject) -> Finding:
    """Compare answers and counters."""
    answers = subject.engine
    if answers is None:
        return STAGE.unchecked("give doctor.endpoint=URL of a running `vllm serve CHECKPOINT`")
    return _wrong_answer(subject, answers) or _acceptance(subject, answers)


def _wrong_answer(subject: Subject, answers: EngineAnswers) -> Finding | None:
    """Report the first token that differs by more than a tie between two tokens."""
    tie = _TIE.get(subject.spec.dtype, _COARSE_TIE)
    for mismatch in answers.served.mismatches:
        if mismatch.logit_gap is None or mismatch.logit_gap > tie:
            return STAGE.failed(
                OTHER_VERIFIER,
                "the engine answers with other tokens",
                where=f"token {mismatch.index} of prompt {mismatch.prompt_id}",
                measured=f"token {mismatch.got}",
                allowed=f"{mismatch.expected}, or within {tie:g} of its logit",
                evidence=f"{answers.name}: another verifier, revision or precision is served",
            )
    return None


def _acceptance(subject: Subject, answers: EngineAnswers) -> Finding:
    """Compare acceptance lengths, and look for a culprit where single requests differ.

    A drafter that has learnt little loses little by a wrong convention: its acceptance length may
    stay within the tolerance while no request counts what it should.
    """
    served, here = answers.served.acceptance, answers.here.acceptance
    apart = served.length / here.length - 1
    allowed = max(LARGEST_APART, 1 / max(here.num_drafts, 1))
    measured = (
        f"tau {served.length:.3f} served, {here.length:.3f} here ({apart:+.2%}); counters of "
        f"{num_equal(served, here)} of {here.num_prompts} requests equal"
    )
    explained = None if same_counters(served, here) else _explain(subject, answers)
    if explained is None and abs(apart) <= allowed:
        return STAGE.passed(
            f"{answers.name} accepts what is accepted here",
            measured=measured,
            allowed=f"{allowed:.1%} apart",
        )
    cause, evidence = explained or (OTHER_ENGINE, "")
    return STAGE.failed(
        cause,
        f"{answers.name} accepts other drafts than decoding here",
        where=_first_request(answers),
        measured=measured,
        allowed=f"{allowed:.1%} apart",
        evidence=evidence,
    )


def _first_request(answers: EngineAnswers) -> str:
    """Name the first request whose counters differ, and the draft position where they part."""
    served, here = answers.served.acceptance, answers.here.acceptance
    for number, row in enumerate(answers.served.rows):
        different = (served.reached[number] != here.reached[number]).nonzero()[0]
        if len(different):
            k = int(different[0])
            counts = f"{served.reached[number][k]} against {here.reached[number][k]}"
            return f"prompt {row.prompt_id}, drafted token {k + 1} ({counts} accepted)"
    return "no single request"


def _explain(subject: Subject, answers: EngineAnswers) -> tuple[Cause, str] | None:
    """Name what the engine does otherwise, where doing the same here gives its counters."""
    served = answers.served.acceptance
    if not served.num_accepted_tokens:
        return DAMAGED_CHECKPOINT, (
            "it accepts nothing at all: as with a missing tensor or another convention, which its "
            "loader does not notice"
        )
    if subject.drafter is None:
        return None
    culprit = find_culprit(subject.drafter, served, answers.again)
    if culprit is None:
        return None
    return culprit.cause, (
        f"its counters are those of a drafter that {culprit.words}: it serves another config.json "
        "or reads this one otherwise"
    )

"""The teacher says what the verifier says: norm and head over the captured state are its logits."""

from __future__ import annotations

import torch

from speculators.doctor.causes import NORMED_LAST_STATE, WRONG_TEACHER
from speculators.doctor.finding import Finding, Stage
from speculators.doctor.recording import sketch, sketch_of
from speculators.doctor.stages.states import tolerance
from speculators.doctor.subject import Subject
from speculators.hidden_states.online.handshake import relative_difference

STAGE = Stage(
    "teacher logits",
    "norm and head over the captured last state give the verifier's own logits",
)
_EXACT, _COARSE = 1e-3, 1e-1


def check(subject: Subject) -> Finding:
    """Compare logits of every probe, and the states training captured with those captured here."""
    if not subject.own_streams:
        return STAGE.unchecked("the verifier does not run in this process")
    worst, same, counted, allowed = 0.0, 0, 0, _EXACT
    for number, (probe, own) in enumerate(zip(subject.probes, subject.own_streams, strict=True)):
        last = probe.states.last
        allowed = _EXACT if tolerance(last.dtype) < _EXACT else _COARSE
        # Training may run in bf16; the verifier's own logits come from its own number format.
        with torch.autocast(last.device.type, enabled=False):
            logits = subject.head.logits(last)
        measured = relative_difference(logits, own.logits)
        if not measured <= allowed:
            normed = relative_difference(last, own.normed) <= tolerance(last.dtype)
            return _failure(number, f"relative difference {measured:.2g}", allowed, normed=normed)
        worst = max(worst, measured)
        same += int((logits.argmax(-1) == own.logits.argmax(-1)).sum())
        counted += len(logits)
    return _recorded(subject) or STAGE.passed(
        "teacher logits equal the verifier's",
        where=f"{len(subject.probes)} probes",
        measured=f"relative difference {worst:.2g} at most, {same} of {counted} choices equal",
        allowed=f"{allowed:g}",
    )


def _recorded(subject: Subject) -> Finding | None:
    """Hold the last states training captured against those proved just now."""
    recorded = subject.recorded
    if recorded is None or not recorded.probes:
        return None
    allowed = tolerance(recorded.states_dtype)
    pairs = zip(subject.probes, recorded.probes, subject.own_streams, strict=True)
    for number, (probe, then, own) in enumerate(pairs):
        now = sketch_of(probe.states)[:, -1]
        measured = relative_difference(then.sketch[:, -1], now)
        if not measured <= allowed:
            normed = sketch(own.normed[:, None])[:, 0]
            return _failure(
                number,
                f"the state captured while training is {measured:.2g} away",
                allowed,
                normed=relative_difference(then.sketch[:, -1], normed) <= allowed,
            )
    return None


def _failure(number: int, measured: str, allowed: float, *, normed: bool) -> Finding:
    cause = NORMED_LAST_STATE if normed else WRONG_TEACHER
    evidence = "it equals the stream behind the final norm" if normed else ""
    return STAGE.failed(
        cause,
        "teacher logits differ from the verifier's",
        where=f"the last state (prompt {number})",
        measured=measured,
        allowed=f"{allowed:g}",
        evidence=evidence,
    )

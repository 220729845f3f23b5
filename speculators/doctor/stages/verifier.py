"""The verifier is the one of training, weight for weight."""

from __future__ import annotations

from speculators.doctor.causes import OTHER_VERIFIER
from speculators.doctor.finding import Finding, Stage
from speculators.doctor.subject import Subject

STAGE = Stage("verifier", "the verifier's weights are those the states came from")


def check(subject: Subject) -> Finding:
    """Compare the commit, or the hash of the folder, with what training recorded."""
    if subject.recorded is None:
        return STAGE.unchecked(subject.unrecorded)
    then, now = subject.recorded.revision, subject.revision
    if then == now:
        return STAGE.passed("the verifier is that of training", measured=now[:19])
    if then.startswith("sha256:") != now.startswith("sha256:"):
        return STAGE.unchecked("one of two is named by commit, the other by content")
    return STAGE.failed(
        OTHER_VERIFIER,
        "the verifier is another one",
        where=subject.spec.name_or_path,
        measured=now[:19],
        allowed=then[:19],
    )

"""A broken convention: the chain of stages, as training left it, and as it comes out now."""

from __future__ import annotations

from speculators.doctor import causes
from speculators.doctor.case import NOW, START, Case
from speculators.doctor.causes import ALL, Cause
from speculators.doctor.diagnosis import Diagnosis, Rule, confirmed
from speculators.doctor.finding import Finding, Verdict

_BY_NAME = {cause.name: cause for cause in ALL}


def look(case: Case) -> Diagnosis | None:
    """Return the first difference of the first examination that found one."""
    for name, findings in case.certificates.items():
        failed = next((f for f in findings if f.verdict is Verdict.failed), None)
        if failed is not None:
            return _diagnosis(_place(name), failed)
    return None


def _place(name: str) -> str:
    known = {START: "training, before the first step", NOW: "examined now"}
    return known.get(name, f"training, checkpoint {name}")


def _diagnosis(place: str, failed: Finding) -> Diagnosis:
    cause: Cause = _BY_NAME[failed.cause]
    without = Finding(failed.stage, failed.verdict, failed.text, failed.where, failed.measured)
    signature = without.line + (f" (allowed {failed.allowed})" if failed.allowed else "")
    evidence = f", {failed.evidence}" if failed.evidence else ""
    test = f"stage {failed.stage} of parity ({place}){evidence}"
    return confirmed(cause, signature, test, failed.change)


RULE = Rule(tuple(cause for cause in ALL[: ALL.index(causes.ALL_ONES_MASK)]), look, settles=True)

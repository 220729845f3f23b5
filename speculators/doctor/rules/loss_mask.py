"""Prompts that are supervised as if they were answers."""

from __future__ import annotations

from speculators.doctor.case import Case
from speculators.doctor.causes import ALL_ONES_MASK, OFF_POLICY
from speculators.doctor.diagnosis import Diagnosis, Rule, confirmed, suspected

_MOST_TOKENS, _MOST_SAMPLES = 0.95, 0.5
"""Answers that long exist (reasoning), and then the test finds a question before them. Where every
token is supervised, preparing the data stops; a mask that leaves out the first token alone passes
there, and is the same fault."""


def look(case: Case) -> Diagnosis | None:
    """Count supervised tokens, then look at how samples begin."""
    report = case.files.data_report
    samples, tokens = report.get("num_samples") or 0, report.get("num_tokens") or 0
    if not samples or not tokens:
        return None
    whole = report.get("num_fully_supervised", 0) / samples
    share = report.get("num_supervised", 0) / tokens
    if whole < _MOST_SAMPLES and share < _MOST_TOKENS:
        return None
    signature = f"{share:.0%} of all tokens are supervised"
    if whole:
        signature += f", and all tokens of {whole:.0%} of samples"
    if case.lab is None:
        return suspected(ALL_ONES_MASK, signature, "not made: look at how samples begin")
    first = case.lab.supervised_prompts()
    if first < _MOST_SAMPLES:
        return None
    return confirmed(
        ALL_ONES_MASK,
        signature,
        f"{first:.0%} of training samples are supervised from their first tokens on",
    )


RULE = Rule((ALL_ONES_MASK,), look, hides=(OFF_POLICY,))

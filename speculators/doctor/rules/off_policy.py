"""Answers that the verifier would not give teach what it never says."""

from __future__ import annotations

from speculators.doctor.case import Case
from speculators.doctor.causes import OFF_POLICY
from speculators.doctor.diagnosis import Diagnosis, Rule, confirmed, suspected

_LOW_SHARE = 0.9
_MOST_NATS = 0.2


def look(case: Case) -> Diagnosis | None:
    """Compare how surprising the answers are with how surprising the verifier's own would be."""
    shares = [line["on_policy_share"] for line in case.validations if "on_policy_share" in line]
    if not shares or shares[-1] >= _LOW_SHARE:
        return None
    signature = f"the verifier's first choice is {shares[-1]:.0%} of the answers' tokens"
    if case.config.data.regenerate.enabled and case.config.data.regenerate.temperature > 0:
        signature += f" (regenerated at temperature {case.config.data.regenerate.temperature:g})"
    if case.lab is None:
        if case.config.data.regenerate.enabled:
            return None
        return suspected(
            OFF_POLICY,
            signature,
            "not made: compare the surprise of the answers with the verifier's own entropy",
        )
    excess = case.lab.excess_surprise
    if excess <= _MOST_NATS:
        return None
    return confirmed(
        OFF_POLICY,
        signature,
        f"they surprise it by {excess:.2f} nats a token more than its own words would (allowed "
        f"{_MOST_NATS:g})",
    )


RULE = Rule((OFF_POLICY,), look)

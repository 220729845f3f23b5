"""Slots see when served what they saw while training."""

from collections.abc import Sequence

from speculators.attention.layout import MaskRule
from speculators.doctor.causes import WRONG_CAUSALITY
from speculators.doctor.finding import Stage
from speculators.doctor.stages.conventions import ConventionStage


def _show(rules: Sequence[MaskRule]) -> str:
    return ", ".join(
        ("causal" if rule.causal else "bidirectional")
        + ("" if rule.window is None else f" within {rule.window}")
        for rule in rules
    )


check = ConventionStage(
    Stage("causality", "every draft layer has the window and causality of training"),
    WRONG_CAUSALITY,
    "sliding_window_non_causal, layer_types",
    lambda says: says.rules,
    _show,
)

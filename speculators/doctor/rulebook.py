"""All rules, in the order in which causes are looked for."""

from __future__ import annotations

from speculators.doctor.diagnosis import Rule
from speculators.doctor.rules import (
    bfloat16,
    coverage,
    leak,
    loops,
    loss_mask,
    off_policy,
    other_layers,
    overfit,
    parity,
    positions,
    shifted,
    slices,
    unstable,
    vocabulary,
)

RULES: tuple[Rule, ...] = (
    parity.RULE,
    shifted.RULE,
    other_layers.RULE,
    leak.RULE,
    loss_mask.RULE,
    off_policy.RULE,
    vocabulary.RULE,
    positions.RULE,
    bfloat16.RULE,
    unstable.RULE,
    coverage.RULE,
    overfit.RULE,
    slices.LENGTHS,
    slices.KINDS,
    loops.RULE,
)

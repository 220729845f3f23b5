"""Good validation, bad decoding: states of training came from other layers than those now read."""

from __future__ import annotations

from collections.abc import Iterator

from speculators.doctor.case import Case
from speculators.doctor.causes import SWAPPED_LAYERS, WRONG_LAYER_IDS, Cause
from speculators.doctor.diagnosis import Diagnosis, Rule, confirmed, suspected

_SHARE_LOST = 0.6
"""Decoding that keeps less than this share of what validation promised is worth a look."""
_LEARNT = 1.3
"""Below, nothing was promised."""
_TIMES, _MORE = 1.5, 0.2


def look(case: Case) -> Diagnosis | None:
    """Walk along held-out rows with states of neighbouring layers, and in another order."""
    promised, got = case.validated, case.decoded.get("acceptance_length")
    if promised is None or promised < _LEARNT:
        return None
    if got is None and case.lab is not None:
        got = case.lab.decoded.length
    if got is None or got - 1 > _SHARE_LOST * (promised - 1):
        return None
    signature = f"validation promised tau {promised:.2f}, decoding found {got:.2f}"
    if case.lab is None:
        return suspected(
            WRONG_LAYER_IDS,
            signature,
            "not made: walk along held-out rows with states of the layers one higher and one lower",
        )
    own = case.lab.walked_held_out.length
    for cause, text, layer_ids in _readings(case):
        other = case.lab.length(case.lab.rows(case.lab.data.validation, layer_ids))
        if other - 1 > _TIMES * (own - 1) and other - own > _MORE:
            return confirmed(
                cause, signature, f"held-out rows give tau {own:.2f}, with {text} {other:.2f}"
            )
    return None


def _readings(case: Case) -> Iterator[tuple[Cause, str, list[int]]]:
    """Yield other ways to read the same number of layers."""
    lab = case.lab
    if lab is None:
        return
    ids: list[int] = list(lab.drafter.config.target_layer_ids or [])
    for by, word in ((1, "higher"), (-1, "lower")):
        moved = [i + by for i in ids]
        if all(0 <= i < lab.verifier.spec.num_layers for i in moved):
            yield WRONG_LAYER_IDS, f"layers one {word}", moved
    if len(ids) > 1:
        yield SWAPPED_LAYERS, "layers in descending order", ids[::-1]


RULE = Rule((WRONG_LAYER_IDS, SWAPPED_LAYERS), look, settles=True)

"""States of training came from other layers than those that are read now."""

from __future__ import annotations

from collections.abc import Iterator

from speculators.doctor.case import Case
from speculators.doctor.causes import SWAPPED_LAYERS, WRONG_LAYER_IDS, Cause
from speculators.doctor.diagnosis import Diagnosis, Rule, confirmed, suspected

_LEARNT = 1.3
"""Below, a drafter makes no use of its states yet."""
_SHARE_LOST = 0.6
"""Without a test: decoding that keeps less than this share of what validation promised."""
_TIMES, _MORE = 1.1, 0.05
"""The same rows are walked with each reading, and a drafter does best with the layers it was
trained on: in healthy runs no other reading got beyond 0.98 times their tau - 1. Of planted ones
the layers one higher reached 1.2 times those read now, the right order 1.6 times. Decoding alone
need not show it: neighbouring layers are alike."""


def look(case: Case) -> Diagnosis | None:
    """Walk along held-out rows with states of neighbouring layers, and in another order."""
    promised, got = case.validated, case.decoded.get("acceptance_length")
    if promised is None or promised < _LEARNT:
        return None
    found = "" if got is None else f", decoding found {got:.2f}"
    signature = f"validation promised tau {promised:.2f}{found}"
    if case.lab is None:
        if got is None or got - 1 > _SHARE_LOST * (promised - 1):
            return None
        return suspected(
            WRONG_LAYER_IDS,
            signature,
            "not made: walk along held-out rows with states of the layers one higher and one lower",
        )
    own = case.lab.walked_held_out.length
    best = max(_walks(case), key=lambda walk: walk[2], default=None)
    if best is None or best[2] - 1 <= _TIMES * (own - 1) or best[2] - own <= _MORE:
        return None
    cause, text, other = best
    return confirmed(cause, signature, f"held-out rows give tau {own:.2f}, with {text} {other:.2f}")


def _walks(case: Case) -> Iterator[tuple[Cause, str, float]]:
    """Yield the acceptance length of every other reading."""
    if case.lab is None:
        return
    for cause, text, layer_ids in _readings(case):
        rows = case.lab.rows(case.lab.data.validation, layer_ids)
        yield cause, text, case.lab.length(rows)


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

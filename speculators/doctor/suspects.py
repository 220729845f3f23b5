"""What an engine may do otherwise, tried here: whose counters are the engine's?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from speculators.algorithms.base import Drafter
from speculators.doctor.causes import (
    STALE_VOCABULARY,
    WRONG_CAUSALITY,
    WRONG_LAYER_IDS,
    WRONG_ROPE,
    Cause,
)
from speculators.evaluation.acceptance import Acceptance
from speculators.modules.rotary import inverse_frequencies

_THETAS = (10_000.0, 1_000_000.0)
"""What engines take where a file names none."""


@dataclass(frozen=True)
class Suspect:
    """One way to draft otherwise with the same weights.

    Attributes:
        cause: what it would be.
        words: what the engine would do then.
        values: attributes of the drafter that make it do the same here.
    """

    cause: Cause
    words: str
    values: dict[str, Any]

    @contextmanager
    def planted(self, drafter: Drafter[Any]) -> Iterator[None]:
        """Let the drafter draft so for a while."""
        before = {name: getattr(drafter, name) for name in self.values}
        try:
            for name, value in self.values.items():
                setattr(drafter, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(drafter, name, value)


def suspects(drafter: Drafter[Any]) -> Iterator[Suspect]:
    """Yield what a drafter can be made to do otherwise, the commonest first."""
    own = list(drafter.config.target_layer_ids or ())
    for by in (1, -1):
        ids = [i + by for i in own]
        if ids and ids[0] >= 0 and ids[-1] <= drafter.spec.num_layers:
            words = f"reads layers {', '.join(map(str, ids))}, not {', '.join(map(str, own))}"
            config = replace(drafter.config, target_layer_ids=ids)
            yield Suspect(WRONG_LAYER_IDS, words, {"config": config})
    rules = getattr(drafter, "rules", ())
    for causal in (True, False):
        changed = tuple(replace(rule, causal=causal) for rule in rules)
        if changed != tuple(rules):
            words = f"makes every slot {'causal' if causal else 'bidirectional'}"
            yield Suspect(WRONG_CAUSALITY, words, {"rules": changed})
    angles = getattr(drafter, "rope_frequencies", None)
    for theta in _THETAS:
        if not isinstance(angles, Tensor):
            break
        other = inverse_frequencies(2 * len(angles), {"rope_theta": theta}).to(angles)
        if not torch.allclose(other, angles):
            words = f"turns by rope_theta {theta:,.0f}"
            yield Suspect(WRONG_ROPE, words, {"rope_frequencies": other})
    token_ids = getattr(drafter, "token_ids", None)
    if isinstance(token_ids, Tensor) and not drafter.vocabulary.is_full:
        first = torch.arange(len(token_ids)).to(token_ids)
        words = f"drafts tokens 0 to {len(first) - 1}, as without d2t"
        yield Suspect(STALE_VOCABULARY, words, {"token_ids": first})


def find_culprit(
    drafter: Drafter[Any], served: Acceptance, again: Callable[[], Acceptance]
) -> Suspect | None:
    """Return the first suspect that gives the engine's counters, request by request.

    Args:
        drafter: drafts here.
        served: what the engine counted.
        again: decodes the same prompts with the drafter as it is then.
    """
    for suspect in suspects(drafter):
        with suspect.planted(drafter):
            if same_counters(served, again()):
                return suspect
    return None


def same_counters(served: Acceptance, here: Acceptance) -> bool:
    """Return whether both drafted alike.

    Two tokens of equal likelihood may swap places by rounding, so one request of four may differ.
    """
    return num_equal(served, here) >= served.num_prompts - served.num_prompts // 4


def num_equal(served: Acceptance, here: Acceptance) -> int:
    """Return for how many requests both counted the same drafts, accepted as far."""
    return int(((served.drafts == here.drafts) & (served.reached == here.reached).all(-1)).sum())

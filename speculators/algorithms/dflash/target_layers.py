"""DFlash's rule for the verifier layers it reads. Imports no torch."""

from __future__ import annotations

from speculators.verifier.layers import usable_or_spread


def dflash_layer_ids(num_layers: int, count: int) -> tuple[int, ...]:
    """Return DFlash's default target layers, ascending.

    DFlash specification, section 13: `count` layers from the second to the fourth last. Verifiers
    too shallow for `count` distinct layers of that rule get them spread over all their layers,
    at most L - 1 of them.

    Args:
        num_layers: decoder layers of the verifier [L].
        count: layers wanted [A].
    """
    if count == 1:
        return (num_layers // 2 + 1,) if num_layers > 2 else (num_layers - 1,)
    ids = tuple(round(1 + i * (num_layers - 4) / (count - 1)) + 1 for i in range(count))
    return usable_or_spread(ids, num_layers)

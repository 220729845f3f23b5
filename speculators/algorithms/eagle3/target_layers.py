"""Eagle-3's rule for the verifier layers it reads. Imports no torch."""

from __future__ import annotations

from speculators.verifier.layers import usable_or_spread


def eagle3_layer_ids(num_layers: int) -> tuple[int, ...]:
    """Return Eagle-3's default target layers (2, L // 2, L - 3), ascending.

    DFlash specification, section 13, last column. Verifiers of less than 7 layers, where these
    do not ascend, get three layers spread over all of them.
    """
    return usable_or_spread((2, num_layers // 2, num_layers - 3), num_layers)

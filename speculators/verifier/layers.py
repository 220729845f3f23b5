"""Which verifier layers a drafter reads: default rules and their check. Imports no torch.

Ids are extraction ids everywhere: id i is the residual stream entering layer i (0: embeddings).
Id L, the stream after the last of L layers, is captured beside them for the teacher and is never
part of a drafter's list (hidden-states specification, section 1).
"""

from __future__ import annotations

from collections.abc import Sequence


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
    return ids if _usable(ids, num_layers) else _spread(num_layers, count)


def eagle3_layer_ids(num_layers: int) -> tuple[int, ...]:
    """Return Eagle-3's default target layers (2, L // 2, L - 3), ascending.

    DFlash specification, section 13, last column. Verifiers of less than 8 layers, where these
    do not ascend, get three layers spread over all of them.
    """
    ids = (2, num_layers // 2, num_layers - 3)
    return ids if _usable(ids, num_layers) else _spread(num_layers, 3)


def check_layer_ids(layer_ids: Sequence[int], num_layers: int) -> str | None:
    """Return what is wrong with a drafter's target layers, or None.

    The text continues a line that opens with the dotted path and the value.
    """
    highest = num_layers - 1
    if not layer_ids:
        return "give at least one layer id"
    if outside := [i for i in layer_ids if not 0 <= i <= highest]:
        text = f"{outside[0]} is no layer of this verifier: ids lie between 0 and {highest}"
        if num_layers in outside:
            text += f" ({num_layers}, the last state, is read for the teacher and never listed)"
        return text
    if len(set(layer_ids)) != len(layer_ids):
        return "an id stands twice: ids must be distinct"
    if sorted(layer_ids) != list(layer_ids):
        return f"ids must ascend, as they are stored: {sorted(layer_ids)}"
    return None


def _usable(ids: tuple[int, ...], num_layers: int) -> bool:
    return check_layer_ids(ids, num_layers) is None


def _spread(num_layers: int, count: int) -> tuple[int, ...]:
    """Return `count` ids evenly over 1..L-1, fewer where there are not so many."""
    count = min(count, num_layers - 1)
    if count < 2:
        return (num_layers // 2,)
    return tuple(1 + round(i * (num_layers - 2) / (count - 1)) for i in range(count))

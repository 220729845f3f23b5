"""Which verifier layers a drafter can read: the check of any algorithm's rule. Imports no torch.

Ids are extraction ids everywhere: id i is the residual stream entering layer i (0: embeddings).
Id L, the stream after the last of L layers, is captured beside them for the teacher and is never
part of a drafter's list (hidden-states specification, section 1).
"""

from __future__ import annotations

from collections.abc import Sequence


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


def usable_or_spread(layer_ids: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """Return what an algorithm's rule gave, or as many layers spread where it gave no usable ones.

    Args:
        layer_ids: what the rule gave.
        num_layers: decoder layers of the verifier; a shallow one breaks most rules.
    """
    if check_layer_ids(layer_ids, num_layers) is None:
        return layer_ids
    count = min(len(layer_ids), num_layers - 1)
    if count < 2:
        return (num_layers // 2,)
    return tuple(1 + round(i * (num_layers - 2) / (count - 1)) for i in range(count))


def at_same_depth(
    layer_ids: Sequence[int], num_layers: int, new_num_layers: int
) -> tuple[int, ...]:
    """Return the layers of another verifier that lie as deep, relative to its own depth.

    Spread over all of them where two would coincide; fewer than asked for only where the other
    verifier has not as many.

    Args:
        layer_ids: ids in a verifier of `num_layers` decoder layers.
        num_layers: its decoder layers.
        new_num_layers: those of the other verifier.
    """
    nearest = [(2 * i * new_num_layers + num_layers) // (2 * num_layers) for i in layer_ids]
    # Only the embeddings correspond to the embeddings.
    inside = (
        min(max(n, min(i, 1)), new_num_layers - 1) for i, n in zip(layer_ids, nearest, strict=True)
    )
    return usable_or_spread(tuple(inside), new_num_layers)

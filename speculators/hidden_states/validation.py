"""Whether hidden states can be trained on: shapes, number format, tokens, finite, not empty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CHUNK_BYTES = 2**20


def find_problem(
    hidden_states: Tensor,
    token_ids: Tensor,
    *,
    expected_tokens: Int[Tensor, "token"],
    layer_ids: Sequence[int],
    hidden_size: int,
    dtype: torch.dtype,
) -> str | None:
    """Return the first thing wrong with the states of one sample, or None.

    Args:
        hidden_states: token x layer x hidden, as delivered or read.
        token_ids: the tokens they claim to belong to.
        expected_tokens: the sample's tokens.
        layer_ids: ids of the layer axis, ascending.
        hidden_size: width [H].
        dtype: number format agreed on.
    """
    shape = (expected_tokens.shape[0], len(layer_ids), hidden_size)
    if tuple(hidden_states.shape) != shape:
        return f"states have shape {list(hidden_states.shape)}, expected {list(shape)}"
    if hidden_states.dtype != dtype:
        return f"states are {hidden_states.dtype}, expected {dtype}"
    if problem := token_problem(token_ids, expected_tokens):
        return problem
    return value_problem(hidden_states, [str(i) for i in layer_ids])


def value_problem(
    hidden_states: Float[Tensor, "token layer hidden"], layers: Sequence[str]
) -> str | None:
    """Return where values are not finite or a state is all zero, or None. One pass.

    Args:
        hidden_states: states of one sample.
        layers: names of the layer axis; in "0", the embeddings, a zero row is allowed.
    """
    return norms_problem(row_norms(hidden_states), layers)


def row_norms(
    hidden_states: Float[Tensor, "token layer hidden"],
) -> Float[Tensor, "token layer"]:
    """Return every state's norm in fp32, in one pass that stays inside the processor's cache."""
    if hidden_states.device.type != "cpu" or hidden_states.nbytes <= _CHUNK_BYTES:
        return torch.linalg.vector_norm(hidden_states, dim=-1, dtype=torch.float32)
    norms = hidden_states.new_empty(hidden_states.shape[:2], dtype=torch.float32)
    rows = max(1, _CHUNK_BYTES * len(norms) // hidden_states.nbytes)
    for chunk, out in zip(hidden_states.split(rows), norms.split(rows), strict=True):
        torch.linalg.vector_norm(chunk, dim=-1, dtype=torch.float32, out=out)
    return norms


def norms_problem(norms: Float[Tensor, "token layer"], layers: Sequence[str]) -> str | None:
    """Return where norms are not finite or zero, or None; see `value_problem`."""
    not_finite = ~norms.isfinite()
    if not_finite.any():
        token, layer = not_finite.nonzero()[0].tolist()
        return f"not finite: {_place(not_finite)}, first at token {token}, layer {layers[layer]}"
    empty = norms == 0
    if layers and layers[0] == "0" and not empty[:, 0].all():
        # The embedding row of a padding or reserved token may be zero by training.
        empty[:, 0] = False
    if empty.any():
        token, layer = empty.nonzero()[0].tolist()
        return f"all zero: {_place(empty)}, first at token {token}, layer {layers[layer]}"
    return None


def token_problem(got: Tensor, expected: Int[Tensor, "token"]) -> str | None:
    """Return how tokens differ from those expected, or None."""
    expected = expected.to(got.device, torch.int64)
    if got.dtype != torch.int64 or got.shape != expected.shape:
        return f"token ids are {got.dtype} {list(got.shape)}, expected int64 {list(expected.shape)}"
    different = got != expected
    if different.any():
        first = int(different.nonzero()[0])
        return (
            f"states of other tokens: {int(different.sum())} of {len(expected)} differ, the first "
            f"at {first} (holds {int(got[first])}, expected {int(expected[first])})"
        )
    return None


def _place(marked: Tensor) -> str:
    return f"{int(marked.sum())} of {marked.numel()} states"

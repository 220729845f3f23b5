"""Whether hidden states can be trained on: shapes, number format, tokens, finite, not empty."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_CHUNK_BYTES = 2**20
_FEW_TOKENS = 4


class NormBand:
    """Keeps every layer's norm near what it was in the samples before. Used by several threads.

    The norm of a layer is the median over tokens: single tokens carry norms a thousand times
    larger than the rest (attention sinks), which would move a mean in short samples. What is
    usual is the median over samples, so that a few bad ones do not move it.

    Args:
        layers: names of the layer axis.
        factor: allowed ratio to what is usual, both ways.
        fewest: samples looked at before any is refused.
        history: samples looked back on.
    """

    def __init__(
        self, layers: Sequence[object], factor: float, *, fewest: int = 4, history: int = 256
    ) -> None:
        self._layers, self._factor, self._fewest = tuple(layers), factor, fewest
        self._norms: deque[np.ndarray] = deque(maxlen=history)
        self._usual: np.ndarray | None = None
        self._fresh = 0
        self._lock = threading.Lock()

    def problem(self, norms: Float[np.ndarray, "token layer"]) -> str | None:
        """Return which layer of a sample is far from usual, or None and look at it from now on."""
        if len(norms) < _FEW_TOKENS:
            return None
        middle = len(norms) // 2
        median = np.partition(norms, middle, axis=0)[middle]
        with self._lock:
            if self._usual is not None:
                ratio = median / self._usual
                if not (ratio.min() >= 1 / self._factor and ratio.max() <= self._factor):
                    layer = int(np.argmax(np.abs(np.log(np.maximum(ratio, 1e-30)))))
                    return (
                        f"norm of layer {self._layers[layer]} is {median[layer]:.3g}, usually "
                        f"{self._usual[layer]:.3g} "
                        f"(hidden_states.fetch.norm_band={self._factor:g})"
                    )
            self._norms.append(median)
            self._fresh += 1
            if self._fresh >= self._fewest and self._fresh * 8 >= len(self._norms):
                self._fresh = 0
                self._usual = np.median(np.stack(self._norms), axis=0)
        return None


def find_problem(
    hidden_states: Tensor,
    token_ids: Tensor,
    *,
    expected_tokens: Int[Tensor, "token"],
    layer_ids: Sequence[int],
    hidden_size: int,
    dtype: torch.dtype,
    band: NormBand | None = None,
) -> str | None:
    """Return the first thing wrong with the states of one sample, or None.

    Args:
        hidden_states: token x layer x hidden, as delivered or read.
        token_ids: the tokens they claim to belong to.
        expected_tokens: the sample's tokens.
        layer_ids: ids of the layer axis, ascending.
        hidden_size: width [H].
        dtype: number format agreed on.
        band: what norms are usual; None looks at none.
    """
    shape = (expected_tokens.shape[0], len(layer_ids), hidden_size)
    if tuple(hidden_states.shape) != shape:
        return f"states have shape {list(hidden_states.shape)}, expected {list(shape)}"
    if hidden_states.dtype != dtype:
        return f"states are {hidden_states.dtype}, expected {dtype}"
    if problem := token_problem(token_ids, expected_tokens):
        return problem
    norms = row_norms(hidden_states)
    if problem := norms_problem(norms, [str(i) for i in layer_ids]):
        return problem
    return None if band is None else band.problem(norms.numpy())


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

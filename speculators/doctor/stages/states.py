"""Captured states are the verifier's own: each column is the stream entering the layer it names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from speculators.doctor.causes import FOREIGN_STATES, SWAPPED_LAYERS, WRONG_LAYER_IDS, Cause
from speculators.doctor.finding import Finding, Stage
from speculators.doctor.recording import sketch
from speculators.doctor.subject import Subject
from speculators.hidden_states.online.handshake import relative_difference

STAGE = Stage(
    "captured states",
    "every captured column equals the stream entering its layer, as the verifier itself reports it",
)
TOLERANCES = {"float32": 1e-4, "float64": 1e-4}
"""Allowed relative difference by number format of the states; all others: the next line."""
COARSE = 5e-2
_NORMED = "the stream behind the final norm"


@dataclass(frozen=True)
class _Comparison:
    """Columns, and all streams they could be; positions first."""

    where: str
    ids: Sequence[int]
    columns: Float[Tensor, "position layer width"]
    own: Float[Tensor, "position stream width"]
    allowed: float

    def difference(self, column: int, stream: int) -> float:
        return relative_difference(self.columns[:, column], self.own[:, stream])

    def holds(self, column: int) -> int | None:
        """Return the stream a column is; the last one is behind the final norm."""
        found = [self.difference(column, stream) for stream in range(self.own.shape[1])]
        best = min(range(len(found)), key=found.__getitem__)
        return best if found[best] <= self.allowed else None


def check(subject: Subject) -> Finding:
    """Compare every column of every probe, as captured now and as captured while training."""
    if not subject.own_streams:
        return STAGE.unchecked("the verifier does not run in this process")
    worst, counted = 0.0, 0
    for comparison in _comparisons(subject):
        counted += 1
        for column, layer in enumerate(comparison.ids):
            measured = comparison.difference(column, layer)
            if not measured <= comparison.allowed:
                return _failure(comparison, column, measured)
            worst = max(worst, measured)
    layers = ", ".join(map(str, subject.layer_ids))
    return STAGE.passed(
        "captured states equal the verifier's own",
        where=f"layers {layers} of {counted} probes",
        measured=f"relative difference {worst:.2g} at most",
        allowed=f"{_allowed(subject):g}",
    )


def tolerance(dtype: torch.dtype | str) -> float:
    """Return the relative difference that rounding to a number format explains."""
    return TOLERANCES.get(str(dtype).removeprefix("torch."), COARSE)


def _allowed(subject: Subject) -> float:
    if subject.recorded is not None and subject.recorded.probes:
        return tolerance(subject.recorded.states_dtype)
    return tolerance(subject.probes[0].states.aux.dtype)


def _comparisons(subject: Subject) -> Iterator[_Comparison]:
    ids, recorded = subject.layer_ids, subject.recorded
    for number, (probe, own) in enumerate(zip(subject.probes, subject.own_streams, strict=True)):
        streams = torch.cat([own.entering.transpose(0, 1), own.normed[:, None]], 1)
        name = f"prompt {number}"
        aux = probe.states.aux
        yield _Comparison(name, ids, aux.float(), streams.float(), tolerance(aux.dtype))
        if recorded is not None and recorded.probes:
            then = recorded.probes[number].sketch[:, :-1]
            trained = recorded.layer_ids
            allowed = tolerance(recorded.states_dtype)
            yield _Comparison(f"{name} while training", trained, then, sketch(streams), allowed)


def _failure(comparison: _Comparison, column: int, measured: float) -> Finding:
    cause, evidence = _explain(comparison, column)
    return STAGE.failed(
        cause,
        "captured states differ from the verifier's own",
        where=f"layer {comparison.ids[column]} ({comparison.where})",
        measured=f"relative difference {measured:.2g}",
        allowed=f"{comparison.allowed:g}",
        evidence=evidence,
    )


def _explain(comparison: _Comparison, column: int) -> tuple[Cause, str]:
    ids = list(comparison.ids)
    found = [comparison.holds(i) for i in range(len(ids))]
    normed = comparison.own.shape[1] - 1
    this = found[column]
    if sorted(stream for stream in found if stream is not None) == sorted(ids):
        held = ", ".join(map(str, found))
        return SWAPPED_LAYERS, f"columns {', '.join(map(str, ids))} hold layers {held}"
    if this == normed:
        return WRONG_LAYER_IDS, f"they equal {_NORMED}"
    if this is not None:
        by = this - ids[column]
        amount = "one" if abs(by) == 1 else str(abs(by))
        return WRONG_LAYER_IDS, (
            f"they equal the stream entering layer {this}: target_layer_ids are {amount} too "
            f"{'low' if by > 0 else 'high'}"
        )
    states = comparison.columns[:, column]
    if not states.any():
        return FOREIGN_STATES, "all of them are zero"
    if not bool(states.isfinite().all()):
        return FOREIGN_STATES, "some are NaN or infinite"
    for shift, word in ((1, "next"), (-1, "previous")):
        moved = comparison.own[:, ids[column]].roll(-shift, 0)[1:-1]
        if relative_difference(states[1:-1], moved) <= comparison.allowed:
            return FOREIGN_STATES, f"every row holds the state of the {word} token"
    return FOREIGN_STATES, "they equal no stream of this verifier"

"""What a run knew while it trained: the other side of every later comparison.

States are kept as sketches, projections onto a few fixed directions at a few positions: a relative
difference of states is that of their sketches, up to the chance of the directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from speculators.algorithms.conventions import Conventions
from speculators.hidden_states.types import HiddenStates

_DIRECTIONS, _POSITIONS = 8, 4


@dataclass(frozen=True, eq=False)
class RecordedProbe:
    """One probe as training saw it.

    Attributes:
        input_ids: its tokens.
        start: index of the answer's first token.
        sketch: of the captured states; the stream after the last layer comes last.
        drafts: tokens drafted after each position given.
        clear: those of the positions whose first token was a clear choice: rounding cannot change
            it.
    """

    input_ids: Int[Tensor, "token"]
    start: int
    sketch: Float[Tensor, "position layer direction"]
    drafts: dict[int, list[int]]
    clear: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "input_ids": self.input_ids.tolist(),
            "start": self.start,
            "sketch": self.sketch.tolist(),
            "drafts": {str(at): tokens for at, tokens in self.drafts.items()},
            "clear": list(self.clear),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecordedProbe:
        """Rebuild from `to_dict`."""
        return cls(
            torch.tensor(values["input_ids"], dtype=torch.int64),
            values["start"],
            torch.tensor(values["sketch"], dtype=torch.float64),
            {int(at): list(tokens) for at, tokens in values["drafts"].items()},
            tuple(values["clear"]),
        )


@dataclass(frozen=True)
class Recording:
    """What a run knew.

    Attributes:
        verifier: name or path.
        revision: of its weights.
        tokenizer_hash: of its tokenizer.
        vocabulary: fingerprint of the draft vocabulary.
        layer_ids: layers the probes' states were captured for.
        rendering: tokens of a fixed conversation under the run's template.
        conventions: what the drafter in training computes with; None where it does not say.
        states_dtype: number format of the captured states.
        probes: what was compared.
    """

    verifier: str
    revision: str
    tokenizer_hash: str
    vocabulary: str
    layer_ids: tuple[int, ...]
    rendering: tuple[int, ...]
    conventions: Conventions | None
    states_dtype: str
    probes: tuple[RecordedProbe, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            **vars(self),
            "layer_ids": list(self.layer_ids),
            "rendering": list(self.rendering),
            "conventions": None if self.conventions is None else self.conventions.to_dict(),
            "probes": [probe.to_dict() for probe in self.probes],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recording:
        """Rebuild from `to_dict`."""
        conventions = values["conventions"]
        return cls(
            **{
                **values,
                "layer_ids": tuple(values["layer_ids"]),
                "rendering": tuple(values["rendering"]),
                "conventions": None if conventions is None else Conventions.from_dict(conventions),
                "probes": tuple(map(RecordedProbe.from_dict, values["probes"])),
            }
        )


def sketch(
    states: Float[Tensor, "token layer hidden"],
) -> Float[Tensor, "position layer direction"]:
    """Project states onto fixed directions, at positions spread evenly up to the last one."""
    length, hidden = states.shape[0], states.shape[2]
    at = (torch.arange(1, _POSITIONS + 1) * length).div(_POSITIONS, rounding_mode="floor") - 1
    row, column = torch.arange(1, hidden + 1), torch.arange(1, _DIRECTIONS + 1)
    directions = torch.cos(row.double()[:, None] * (column.double() * 2**0.5))
    return states[at.clamp(min=0)].double().cpu() @ directions


def sketch_of(states: HiddenStates) -> Float[Tensor, "position layer direction"]:
    """Return the sketch of captured states, the stream after the last layer behind the others."""
    return sketch(torch.cat([states.aux, states.last[:, None]], 1))

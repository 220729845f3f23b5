"""Samples and a verifier of tables, so that states cost nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from speculators.data.types import Sample, sample_id_of
from speculators.hidden_states.identity import StoreIdentity
from speculators.hidden_states.types import HiddenStates

NUM_LAYERS = 6
HIDDEN_SIZE = 8


class TableModel:
    """States are a function of token, position and layer; counts what it computes."""

    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.passes: list[list[int]] = []
        self.layer_ids: list[list[int]] = []

    def capture(
        self,
        input_ids: Sequence[torch.Tensor],
        layer_ids: Sequence[int],
        *,
        max_tokens: int | None = None,
    ) -> list[HiddenStates]:
        self.passes.append([len(ids) for ids in input_ids])
        self.layer_ids.append(list(layer_ids))
        return [states_of(ids, layer_ids, self.dtype) for ids in input_ids]


def states_of(
    ids: torch.Tensor, layer_ids: Sequence[int], dtype: torch.dtype = torch.float32
) -> HiddenStates:
    position = torch.arange(len(ids))[:, None, None]
    layer = torch.tensor([*layer_ids, NUM_LAYERS])[None, :, None]
    column = torch.arange(HIDDEN_SIZE)[None, None]
    grid = (1 + ids[:, None, None] + position / 7 + layer * 3 + column / 5).sin().to(dtype)
    return HiddenStates(grid[:, :-1], grid[:, -1])


def make_sample(*ids: int) -> Sample:
    tokens = torch.tensor(ids)
    return Sample(tokens, torch.ones(len(ids), dtype=torch.bool), sample_id_of(tokens), "c")


def make_identity(
    layer_ids: Sequence[int] = (1, 3), dtype: str = "float32", **changes: str
) -> StoreIdentity:
    values = {
        "verifier": "someone/model",
        "verifier_revision": "0123abc",
        "tokenizer_hash": "f" * 64,
        "engine": "test 1",
        **changes,
    }
    return StoreIdentity(
        layer_ids=(*layer_ids, NUM_LAYERS),
        num_layers=NUM_LAYERS,
        hidden_size=HIDDEN_SIZE,
        dtype=dtype,
        **values,
    )

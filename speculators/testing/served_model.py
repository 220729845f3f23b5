"""A whole verifier behind `FakeVLLM`: real states and tokens without a real server."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from speculators.verifier.model import VerifierModel
from speculators.verifier.weights import make_head


class ServedModel:
    """Computes what `FakeVLLM` answers; one request at a time.

    Args:
        model: the verifier; nobody else may run it meanwhile.
    """

    def __init__(self, model: VerifierModel) -> None:
        self._model = model
        self._head = make_head(model.spec, model.tables)
        self._lock = threading.Lock()

    def __call__(
        self, token_ids: Sequence[int], layer_ids: Sequence[int]
    ) -> tuple[Float[Tensor, "token layer hidden"], int]:
        """Return the streams entering `layer_ids`, the last one among them or not, and a token."""
        last_id = self._model.spec.num_layers
        with self._lock:
            tokens = torch.tensor(token_ids)
            states = self._model.capture([tokens], [i for i in layer_ids if i < last_id])[0]
        stacked = states.aux
        if last_id in layer_ids:
            stacked = torch.cat([states.aux, states.last[:, None]], dim=1)
        return stacked, int(self._head.argmax(states.last[-1:])[0])

    def answer(self, token_ids: Sequence[int], longest: int, stop_ids: Sequence[int]) -> list[int]:
        """Return the greedy answer of a server's model, as long as asked for."""
        with self._lock:
            return self._model.generate([token_ids], max_new_tokens=longest, stop_ids=stop_ids)[0]

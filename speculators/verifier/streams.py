"""Reads residual streams of a decoder while it runs, by forward hooks on the layers asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from speculators.errors import HiddenStateError
from speculators.verifier.spec import VerifierSpec


class Decoder:
    """The text decoder inside a model of `transformers`: layers and the final norm after them.

    Attributes:
        module: the decoder, without a head.
        norm: the final norm.

    Raises:
        HiddenStateError: nothing of that structure is in the model.
    """

    def __init__(self, spec: VerifierSpec, model: nn.Module) -> None:
        self._num_layers = spec.num_layers
        for module in model.modules():
            layers = getattr(module, "layers", None)
            norm = getattr(module, "norm", None) or getattr(module, "final_norm", None)
            if not (isinstance(layers, nn.ModuleList) and isinstance(norm, nn.Module)):
                continue
            if len(layers) == spec.num_layers:
                self.module, self.norm = module, norm
                self._layers = list(layers)
                return
        raise HiddenStateError(
            f"verifier.name_or_path={spec.name_or_path}: {type(model).__name__} has no decoder of "
            f"{spec.num_layers} layers followed by a norm; serve it with vLLM instead"
        )

    @contextmanager
    def streams(self, layer_ids: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Collect the streams entering layers while the context is open.

        The last state, id L, is what enters the final norm; `hidden_states[L]` of transformers is
        behind that norm and is another thing.

        Args:
            layer_ids: extraction ids 0..L, ascending.

        Yields:
            `row token hidden` by layer id, filled by a forward pass.

        Raises:
            HiddenStateError: ids that do not ascend or are none of this model's.
        """
        last = self._num_layers
        if any(not 0 <= i <= last for i in layer_ids) or sorted(set(layer_ids)) != list(layer_ids):
            raise HiddenStateError(
                f"layer ids {list(layer_ids)}: must be distinct, ascend and lie in 0..{last}"
            )
        found: dict[int, Tensor] = {}
        handles = []
        for i in layer_ids:
            module = self.norm if i == last else self._layers[i]
            handles.append(module.register_forward_pre_hook(_keep(found, i), with_kwargs=True))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


def _keep(streams: dict[int, Tensor], layer_id: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        streams[layer_id] = args[0] if args else kwargs["hidden_states"]

    return hook


@dataclass(frozen=True)
class OwnStreams:
    """What a model says of one sequence itself, without hooks: the other side of a comparison.

    Attributes:
        entering: streams entering layers 0 to L - 1 (0: embeddings).
        normed: the stream behind the final norm.
        logits: of the token after each position, in fp32.
    """

    entering: Float[Tensor, "layer token hidden"]
    normed: Float[Tensor, "token hidden"]
    logits: Float[Tensor, "token vocab"]


def stack_streams(
    streams: dict[int, Tensor], layer_ids: Sequence[int], *, like: Tensor
) -> Float[Tensor, "row token aux_layer hidden"]:
    """Stack streams by layer; without any, an empty layer axis on the grid of `like`."""
    if layer_ids:
        return torch.stack([streams[i] for i in layer_ids], dim=2)
    return like.new_empty(*like.shape[:2], 0, like.shape[2])

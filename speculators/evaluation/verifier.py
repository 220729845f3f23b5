"""What decoding needs of a verifier; `speculators.verifier.model.VerifierModel` provides it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from speculators.data.types import Turn
from speculators.verifier.spec import VerifierSpec


@runtime_checkable
class Step(Protocol):
    """Result of one forward pass over new tokens."""

    @property
    def logits(self) -> Float[Tensor, "row vocab"]:
        """Logits of the token after each of the last `row` new positions."""
        ...

    @property
    def aux(self) -> Float[Tensor, "new aux_layer hidden"]:
        """Streams entering the asked-for layers, at the new positions."""
        ...


@runtime_checkable
class CachedVerifier(Protocol):
    """A causal language model with a cache that can be cut back."""

    @property
    def spec(self) -> VerifierSpec:
        """Sizes and ids."""
        ...

    @property
    def device(self) -> torch.device:
        """Where token ids are expected."""
        ...

    def new_cache(self) -> Any:
        """Return an empty cache."""
        ...

    def forward(
        self,
        input_ids: Int[Tensor, "new"],
        cache: Any,
        layer_ids: Sequence[int],
        *,
        num_logits: int | None = None,
    ) -> Step:
        """Append tokens to the cached ones; logits of the last `num_logits`, None: of all."""
        ...

    def crop(self, cache: Any, length: int) -> None:
        """Keep the first `length` positions of the cache."""
        ...


@runtime_checkable
class PromptTokenizer(Protocol):
    """What evaluation needs of a tokenizer; `VerifierTokenizer` provides it."""

    @property
    def end_of_turn_ids(self) -> Collection[int]:
        """Ids that end an answer."""
        ...

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Return the tokens after which the verifier answers, special tokens included."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`."""
        ...

    def token_text(self, token_id: int) -> str:
        """Return one token, readable."""
        ...

"""The whole verifier in this process, proven to be what training assumes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import DynamicCache

from speculators.verifier import generation, probe
from speculators.verifier.loading import load_transformers
from speculators.verifier.passes import VerifierPasses
from speculators.verifier.spec import VerifierSpec


class VerifierModel(VerifierPasses):
    """A causal language model of `transformers`, frozen.

    Construction runs a few short passes which prove that the model is causal and that its logits
    are `VerifierHead` of the captured last state.

    Raises:
        HiddenStateError: the model is built or behaves differently from what training assumes.
    """

    def __init__(self, spec: VerifierSpec, model: nn.Module) -> None:
        super().__init__(spec, model)
        self._rolls_back = False
        probe.check_states(self)

    @classmethod
    def load(
        cls,
        spec: VerifierSpec,
        *,
        dtype: str = "auto",
        device: torch.device | str = "cpu",
        trust_remote_code: bool = False,
    ) -> VerifierModel:
        """Load the verifier's weights, from the Hub where they are not here yet.

        Args:
            spec: the verifier.
            dtype: auto (as stored), float32 or bfloat16.
            device: where it runs.
            trust_remote_code: run model code that comes with the repository.

        Raises:
            ConfigError: the weights cannot be loaded, or some are missing.
            HiddenStateError: see the class.
        """
        model = load_transformers(spec, dtype, trust_remote_code)
        return cls(spec, model.to(device))

    def new_cache(self) -> DynamicCache:
        """Return an empty cache for `forward` that can be cropped anywhere.

        Raises:
            HiddenStateError: the model's state cannot be rolled back (recurrent layers).
        """
        if not self._rolls_back:
            probe.check_rollback(self)
            self._rolls_back = True
        return super().new_cache()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | Sequence[int],
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        batch_size: int = 64,
        stop_ids: Sequence[int] | None = None,
        finished: Callable[[int, list[int]], None] | None = None,
    ) -> list[list[int]]:
        """Continue prompts; see `speculators.verifier.generation.generate`.

        `stop_ids` defaults to every id that ends a turn, `seeds` to the places of the prompts.
        """
        return generation.generate(
            self,
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seeds=range(len(prompts)) if seeds is None else seeds,
            batch_size=batch_size,
            stop_ids=self.spec.eos_token_ids if stop_ids is None else stop_ids,
            finished=finished,
        )

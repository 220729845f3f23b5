"""Passes over a whole verifier in this process: hidden states, decoding with a cache."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from speculators.errors import HiddenStateError
from speculators.hidden_states.types import HiddenStates
from speculators.verifier.padding import length_batches, pad_right
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.streams import Decoder, OwnStreams, stack_streams
from speculators.verifier.weights import VerifierTables


@dataclass(frozen=True)
class Step:
    """Result of one forward pass over new tokens.

    Attributes:
        logits: fp32 logits after each of the last `row` new tokens, over the whole vocabulary.
        aux: streams of the layers asked for at every new token, in the verifier's precision.
    """

    logits: Float[Tensor, "row vocab"]
    aux: Float[Tensor, "new aux_layer hidden"]


class VerifierPasses:
    """A causal language model of `transformers`, frozen, as it was built.

    Autocast and gradients are off inside, whatever the caller has on.

    Args:
        spec: what its configuration says.
        model: the model, on its device.

    Attributes:
        spec: as given.
        device: where the weights are.
        dtype: number format of the states.
    """

    def __init__(self, spec: VerifierSpec, model: nn.Module) -> None:
        self.spec = spec
        self._model = model.eval().requires_grad_(False)
        self._decoder = Decoder(spec, model)
        self._lock = threading.RLock()
        weight = next(model.parameters())
        self.device: torch.device = weight.device
        self.dtype: torch.dtype = weight.dtype
        taken = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in taken
        # transformers renamed it within version 5; code that comes with a model keeps its own name.
        self._cache_name = "cache" if "cache" in taken else "past_key_values"

    @property
    def tables(self) -> VerifierTables:
        """Embedding, head and final norm; they share the model's memory."""
        model: Any = self._model
        embed_tokens = model.get_input_embeddings().weight
        head = model.get_output_embeddings()
        return VerifierTables(
            embed_tokens.detach(),
            (embed_tokens if head is None else head.weight).detach(),
            cast(Tensor, self._decoder.norm.weight).detach(),
        )

    def capture(
        self,
        input_ids: Sequence[Int[Tensor, "_"]],
        layer_ids: Sequence[int],
        *,
        max_tokens: int | None = None,
    ) -> list[HiddenStates]:
        """Return the streams of several sequences; the head does not run.

        Sequences that share a pass are padded on the right. What a sequence gets is a function of
        its tokens, but its last bits depend on the other lengths of the pass (float sums are taken
        in another order). Alone in its pass, a sequence always gets the same bits.

        Args:
            input_ids: one-dimensional sequences, not empty, on any device.
            layer_ids: extraction ids, ascending, without the last state (which is always read).
            max_tokens: most tokens of one pass, padding included; 1 runs every sequence alone,
                None runs all in one pass.

        Raises:
            HiddenStateError: a layer this verifier does not have.
        """
        states: dict[int, HiddenStates] = {}
        lengths = [row.shape[0] for row in input_ids]
        for indices in length_batches(lengths, max_tokens=max_tokens):
            rows = [input_ids[i] for i in indices]
            states.update(zip(indices, self._capture_pass(rows, layer_ids), strict=True))
        return [states[i] for i in range(len(lengths))]

    def _capture_pass(
        self, rows: Sequence[Int[Tensor, "_"]], layer_ids: Sequence[int]
    ) -> list[HiddenStates]:
        tokens = pad_right([row.to(self.device, torch.int64) for row in rows])
        last_id = self.spec.num_layers
        with self._alone(), self._decoder.streams([*layer_ids, last_id]) as streams:
            self._decoder.module(input_ids=tokens, use_cache=False)
            last = streams[last_id]
            aux = stack_streams(streams, layer_ids, like=last)
        if len(rows) == 1:
            return [HiddenStates(aux[0], last[0])]
        # Views would keep the whole padded grid alive for as long as any of its rows.
        cut = [(i, row.shape[0]) for i, row in enumerate(rows)]
        return [HiddenStates(aux[i, :n].clone(), last[i, :n].clone()) for i, n in cut]

    def own_streams(self, input_ids: Int[Tensor, "token"]) -> OwnStreams:
        """Return streams and logits as `transformers` itself reports them.

        None of the hooks that `capture` and `forward` read takes part, so the two can be compared.

        Raises:
            HiddenStateError: the model does not report one stream per layer.
        """
        tokens = input_ids.to(self.device, torch.int64)[None]
        with self._alone():
            found = self._model(input_ids=tokens, output_hidden_states=True, use_cache=False)
        states = list(found.hidden_states or ())
        if len(states) != self.spec.num_layers + 1:
            raise HiddenStateError(
                f"verifier.name_or_path={self.spec.name_or_path}: the model reports {len(states)} "
                f"streams, not the {self.spec.num_layers + 1} of its layers: they cannot be "
                "compared with what was captured"
            )
        entering = torch.stack([state[0] for state in states[:-1]])
        return OwnStreams(entering, states[-1][0], found.logits[0].float())

    def new_cache(self) -> DynamicCache:
        """Return an empty cache for `forward`.

        It keeps every position of every layer, of sliding-window layers too, so that it can be
        cropped anywhere; the model's own masks apply the windows.
        """
        return DynamicCache()

    def forward(
        self,
        input_ids: Int[Tensor, "new"],
        cache: DynamicCache,
        layer_ids: Sequence[int] = (),
        *,
        num_logits: int | None = None,
    ) -> Step:
        """Run new tokens of one sequence after those in `cache`, which grows by them.

        Args:
            input_ids: tokens at the next positions.
            cache: from `new_cache`.
            layer_ids: streams to return, ascending; the last state, id L, may be among them.
            num_logits: logits of that many last tokens only; None gives them for all.
        """
        tokens = input_ids.to(self.device)[None]
        with self._alone(), self._decoder.streams(layer_ids) as streams:
            logits = self._logits(tokens, num_logits or 0, cache)[0]
            like = logits.new_empty(1, len(input_ids), self.spec.hidden_size, dtype=self.dtype)
            return Step(logits.float(), stack_streams(streams, layer_ids, like=like)[0])

    def crop(self, cache: DynamicCache, length: int) -> None:
        """Forget everything after the first `length` positions.

        Raises:
            ValueError: `length` is negative or exceeds what the cache holds.
        """
        surplus = int(cache.get_seq_length()) - length
        if surplus < 0 or length < 0:
            raise ValueError(f"cannot crop a cache of {surplus + length} positions to {length}")
        if surplus:
            cache.crop(-surplus)

    def next_logits(
        self, tokens: Int[Tensor, "row token"], cache: DynamicCache | None, **inputs: Tensor
    ) -> Float[Tensor, "row vocab"]:
        """Run tokens of several sequences and return the logits after the last one of each.

        Args:
            tokens: at the next positions of each sequence.
            cache: grows by them; None for sequences that begin here and do not go on.
            inputs: attention_mask and position_ids, as `transformers` defines them.
        """
        with self._alone():
            return self._logits(tokens, 1, cache, **inputs)[:, -1]

    def batch_logits(
        self, tokens: Int[Tensor, "row token"], cache: DynamicCache
    ) -> Float[Tensor, "row token vocab"]:
        """Run tokens of several sequences of one length after those in `cache`.

        Args:
            tokens: at the next positions of each sequence.
            cache: from `new_cache`; grows by them.
        """
        with self._alone():
            return self._logits(tokens, 0, cache)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Switch gradients and autocast off, and keep other threads out.

        Hooks stand on modules, not on passes: they would take another thread's streams for their
        own. Not inference mode: training reads these tensors.
        """
        with self._lock, torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield

    def _logits(
        self, tokens: Tensor, keep: int, cache: DynamicCache | None, **inputs: Any
    ) -> Tensor:
        """Run the model and return logits of the last `keep` positions (0: all)."""
        if self._keeps_logits:
            inputs["logits_to_keep"] = keep
        inputs[self._cache_name] = cache
        logits = self._model(input_ids=tokens, use_cache=cache is not None, **inputs).logits
        return logits[:, -keep:] if keep else logits

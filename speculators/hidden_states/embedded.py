"""Hidden states from a verifier that runs in this process, with an optional store."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from speculators.config.schema.hidden_states import OnGenerate, OnMissing
from speculators.errors import ConfigError, HiddenStateError
from speculators.hidden_states.memory import StatesMemory
from speculators.hidden_states.policy import MissingStates, SourceCounts, store_advice
from speculators.hidden_states.readers import ReaderLog
from speculators.hidden_states.store import HiddenStateStore
from speculators.hidden_states.types import HiddenStates, Tokens
from speculators.hidden_states.usage import StoreFullError
from speculators.hidden_states.validation import value_problem

_log = logging.getLogger(__name__)


@runtime_checkable
class CapturingModel(Protocol):
    """What is needed of a verifier; `speculators.verifier.model.VerifierModel` provides it."""

    @property
    def device(self) -> torch.device:
        """Where the states appear."""
        ...

    def capture(
        self,
        input_ids: Sequence[Int[Tensor, "_"]],
        layer_ids: Sequence[int],
        *,
        max_tokens: int | None = None,
    ) -> list[HiddenStates]:
        """Return the streams of several sequences."""
        ...


class EmbeddedSource:
    """Computes states when they are needed; a `HiddenStateSource`.

    Looked for in this order: memory, store, verifier. The same sample gets the same bits from all
    three as long as `batch_tokens` runs every sample alone, so a resumed run equals an undisturbed
    one. With shared passes the last bits depend on the samples of the same group, never on other
    groups.

    Args:
        model: the verifier; None when `on_missing` never generates.
        layer_ids: target layers, ascending, without the last state.
        store: where states are looked for and, with `cache`, kept.
        on_missing: for samples that the store does not hold.
        on_generate: cache puts generated states into the store.
        batch_tokens: most tokens of one pass, padding included; 1 runs every sample alone. Shared
            passes are faster for small verifiers on a GPU and bring nothing on a CPU.
        memory_bytes: how much is kept in memory for later epochs; 0 keeps nothing.
        must_keep: fills the store for others: stops when there is no room, and its own use of a
            sample is none.

    Attributes:
        counts: samples answered for so far.

    Raises:
        ConfigError: policies that need a store or a verifier that is not there.
    """

    def __init__(
        self,
        model: CapturingModel | None,
        layer_ids: Sequence[int],
        *,
        store: HiddenStateStore | None = None,
        on_missing: OnMissing = OnMissing.generate,
        on_generate: OnGenerate = OnGenerate.delete,
        batch_tokens: int = 1,
        memory_bytes: int = 0,
        must_keep: bool = False,
    ) -> None:
        generates = on_missing is OnMissing.generate
        self._keeps = generates and on_generate is OnGenerate.cache
        if store is None and self._keeps:
            raise ConfigError("hidden_states.on_generate=cache: needs hidden_states.store_path=DIR")
        if store is None and not generates:
            raise ConfigError(
                f"hidden_states.on_missing={on_missing.value}: without generate, states come from "
                "a store: give hidden_states.store_path=DIR"
            )
        if model is None and generates:
            raise ConfigError(
                "hidden_states.on_missing=generate: needs the verifier in this process"
            )
        self.counts = SourceCounts()
        self._model = model
        self._store = store
        # What goes into a store has all the layers of that store.
        stored = store.layer_ids[:-1] if store is not None and self._keeps else layer_ids
        self._layer_ids = list(stored)
        self._generates = generates
        self._missing = MissingStates(on_missing, "the store" if store is None else str(store.path))
        self._batch_tokens = batch_tokens
        self._memory = StatesMemory(memory_bytes)
        self._must_keep = must_keep
        self._num_unkept = 0
        self._reader: ReaderLog | None = None

    def start(self, sample_ids: Collection[str]) -> None:
        """Tell others that use the store what this run will read; the verifier is here."""
        if self._store is not None and not self._must_keep:
            self._reader = self._store.reader(sample_ids, gives_up=self._generates)

    def stream(self, groups: Iterable[Sequence[Tokens]]) -> Iterator[list[HiddenStates | None]]:
        """Yield the states of each group, on the verifier's device.

        See `HiddenStateSource.stream`.
        """
        for group in groups:
            names = [sample.sample_id for sample in group]
            if self._reader is not None:
                self._reader.needs(names)
            found = {i: self._look_up(sample) for i, sample in enumerate(group)}
            missing = [i for i, states in found.items() if states is None]
            if missing and self._generates:
                computed = self._generate([group[i] for i in missing])
                found.update(zip(missing, computed, strict=True))
            elif missing:
                self._leave_out([group[i] for i in missing])
            if self._reader is not None:
                self._reader.done(names)
            yield [self._on_device(found[i]) for i in range(len(group))]

    def gauges(self) -> Mapping[str, float]:
        """Return counts; see `HiddenStateSource.gauges`."""
        held = 0 if self._store is None else self._store.num_bytes
        kept = {"memory_bytes": self._memory.num_bytes, "store_bytes": held}
        return {**vars(self.counts), **kept, "unkept": self._num_unkept}

    def advice(self) -> str:
        """Return why a consumer waits and what to change."""
        if self._store is not None and self.counts.stored > self.counts.generated:
            return store_advice(self._store.path)
        return (
            "the verifier computes hidden states in this process, between the steps: keep more of "
            "them for later epochs (hidden_states.memory_bytes), or fill a store first with "
            "`speculators extract`"
        )

    def close(self) -> None:
        """Let go of the verifier and of what is kept in memory."""
        self._model = None
        self._memory.clear()
        if self._reader is not None:
            self._reader.close()
        if self._store is not None:
            self._store.close()
        if self._num_unkept:
            _log.warning("%d samples were used but not kept: no room", self._num_unkept)

    def _look_up(self, sample: Tokens) -> HiddenStates | None:
        states = self._memory.get(sample.sample_id)
        if states is not None:
            self.counts.remembered += 1
            return states
        if self._store is None:
            return None
        states = self._store.get(sample)
        if states is not None:
            self.counts.stored += 1
            self._memory.add(sample.sample_id, states)
        return states

    def _generate(self, samples: Sequence[Tokens]) -> list[HiddenStates]:
        if self._model is None:
            raise RuntimeError("this source is closed")
        captured = self._model.capture(
            [sample.input_ids for sample in samples], self._layer_ids, max_tokens=self._batch_tokens
        )
        answers = []
        for sample, states in zip(samples, captured, strict=True):
            self._check(sample, states)
            if self._keeps and self._store is not None:
                states = self._keep(self._store, sample, states)
            self._memory.add(sample.sample_id, states)
            answers.append(states)
        self.counts.generated += len(answers)
        return answers

    def _keep(self, store: HiddenStateStore, sample: Tokens, states: HiddenStates) -> HiddenStates:
        try:
            return store.put(sample, states)
        except StoreFullError as error:
            if self._must_keep:
                raise
            if not self._num_unkept:
                _log.warning("%s; going on without keeping", error)
            self._num_unkept += 1
            stacked = store.as_stored(torch.cat([states.aux, states.last[:, None]], dim=1))
            return HiddenStates(stacked[:, :-1], stacked[:, -1])

    def _check(self, sample: Tokens, states: HiddenStates) -> None:
        """Refuse what no training survives: the verifier itself is at fault, not the sample."""
        names = [str(i) for i in self._layer_ids]
        for part, layers in ((states.aux, names), (states.last[:, None], ["last"])):
            if problem := value_problem(part, layers):
                raise HiddenStateError(
                    f"the verifier's states of sample {sample.sample_id} are {problem}; try "
                    "verifier.dtype=float32 or check its weights"
                )

    def _leave_out(self, samples: Sequence[Tokens]) -> None:
        for sample in samples:
            self._missing.leave_out(sample)
            self.counts.left_out += 1

    def _on_device(self, states: HiddenStates | None) -> HiddenStates | None:
        if states is None or self._model is None:
            return states
        device = self._model.device
        return HiddenStates(states.aux.to(device), states.last.to(device))

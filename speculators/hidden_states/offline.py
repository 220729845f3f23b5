"""Hidden states from a store that was filled ahead of training; no verifier is needed."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from speculators.config.schema.hidden_states import OnMissing
from speculators.errors import ConfigError
from speculators.hidden_states.policy import MissingStates, SourceCounts, store_advice
from speculators.hidden_states.readers import ReaderLog
from speculators.hidden_states.store import HiddenStateStore
from speculators.hidden_states.types import HiddenStates, Tokens

_log = logging.getLogger(__name__)


class OfflineSource:
    """Reads a store; a `HiddenStateSource`.

    Args:
        store: where the states are.
        on_missing: skip, warn or error.

    Attributes:
        counts: samples answered for so far.

    Raises:
        ConfigError: `on_missing` is generate.
    """

    def __init__(self, store: HiddenStateStore, on_missing: OnMissing) -> None:
        if on_missing is OnMissing.generate:
            raise ConfigError(
                "hidden_states.on_missing=generate: an offline source cannot generate; allowed: "
                "skip, warn, error (or hidden_states=embedded, which reads a store too)"
            )
        self.counts = SourceCounts()
        self._store = store
        self._reader: ReaderLog | None = None
        self._missing = MissingStates(on_missing, str(store.path))

    def start(self, sample_ids: Collection[str]) -> None:
        """Say how many samples are missing; a short run may never come to them."""
        wanted = set(sample_ids)
        # What cannot be computed again must stay, whoever else makes room in the store.
        self._reader = self._store.reader(wanted, gives_up=False)
        missing = wanted.difference(self._store.sample_ids())
        if missing:
            _log.warning(
                "%d of %d samples have no states in %s (hidden_states.on_missing=%s); "
                "`speculators extract` fills the store",
                *(len(missing), len(wanted), self._store.path, self._missing.on_missing.value),
            )

    def stream(self, groups: Iterable[Sequence[Tokens]]) -> Iterator[list[HiddenStates | None]]:
        """Yield the states of each group, on the CPU; see `HiddenStateSource.stream`."""
        for group in groups:
            yield [self._read(sample) for sample in group]

    def gauges(self) -> Mapping[str, float]:
        """Return counts; see `HiddenStateSource.gauges`."""
        return {**vars(self.counts), "store_bytes": self._store.num_bytes}

    def advice(self) -> str:
        """Return why a consumer waits and what to change."""
        return store_advice(self._store.path)

    def close(self) -> None:
        """Let go of the store."""
        if self._reader is not None:
            self._reader.close()
        self._store.close()

    def _read(self, sample: Tokens) -> HiddenStates | None:
        states = self._store.get(sample)
        if states is None:
            self._missing.leave_out(sample)
            self.counts.left_out += 1
        else:
            self.counts.stored += 1
        return states

"""The store beside servers: what is read from it, what is put into it, and what it must be."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence

from jaxtyping import Float
from torch import Tensor

from speculators.config.schema.hidden_states import (
    HiddenStatesConfig,
    OnGenerate,
    OnMissing,
    StoreDtype,
)
from speculators.errors import HiddenStateError, HiddenStateOutageError
from speculators.hidden_states.float8 import FLOAT8
from speculators.hidden_states.online.handshake import Greeting
from speculators.hidden_states.readers import ReaderLog
from speculators.hidden_states.store import HiddenStateStore
from speculators.hidden_states.types import HiddenStates, Tokens
from speculators.hidden_states.usage import StoreFullError

_log = logging.getLogger(__name__)
_LOOK_AGAIN_SECONDS = 0.5

StoreOpener = Callable[[Greeting | None], HiddenStateStore | None]
"""Opens the configured store. Given None: one that exists, of any number format, or None; given
what a server turned out to be: begins one where there is none."""


class StoreKeeper:
    """Reads and fills the configured store; there may be none. Used by several threads.

    Args:
        settings: `hidden_states` of the configuration.
        layer_ids: ids the trainer reads, the last stream included.
        open_store: opens the configured store, or None.
        must_keep: fills the store for others: waits for room when there is none, and its own use
            of a sample is none.

    Attributes:
        keeps: whether generated states go into the store.
        num_unkept: samples that could not be kept because there was no room.
        item_bytes: bytes per value of the states.
    """

    def __init__(
        self,
        settings: HiddenStatesConfig,
        layer_ids: Sequence[int],
        open_store: StoreOpener | None,
        *,
        must_keep: bool = False,
    ) -> None:
        generates = settings.on_missing is OnMissing.generate
        self.keeps = generates and settings.on_generate is OnGenerate.cache
        self.num_unkept = 0
        self.item_bytes = 2
        self._settings, self._layer_ids = settings, tuple(layer_ids)
        self._generates, self._must_keep = generates, must_keep
        self._wanted: frozenset[str] | None = None
        self._reader: ReaderLog | None = None
        self._registering = threading.Lock()
        self._open = open_store
        self._said_full = False
        self._closed = threading.Event()
        self._store = None if open_store is None else open_store(None)
        if self._store is not None:
            self.item_bytes = self._store.dtype.itemsize

    @property
    def served_layer_ids(self) -> tuple[int, ...]:
        """Ids a server's files must hold: a store that is filled needs all of its own."""
        if self.keeps and self._store is not None:
            return self._store.layer_ids
        return self._layer_ids

    @property
    def num_bytes(self) -> int:
        """What the store holds."""
        return 0 if self._store is None else self._store.num_bytes

    def start(self, sample_ids: Collection[str]) -> None:
        """Tell others that use the store what this run will read."""
        self._wanted = frozenset(sample_ids)

    def needs(self, samples: Sequence[Tokens]) -> None:
        """Keep others from removing what is read next."""
        if self._store is None or self._must_keep:
            return
        with self._registering:  # training and validation stream from threads of their own
            if self._reader is None:
                self._reader = self._store.reader(self._wanted, gives_up=self._generates)
        if self._reader is not None:
            self._reader.needs([sample.sample_id for sample in samples])

    def done(self, samples: Sequence[Tokens]) -> None:
        """Let go of what was read."""
        if self._reader is not None:
            self._reader.done([sample.sample_id for sample in samples])

    def has(self, sample: Tokens) -> bool:
        """Return whether the store has a file for the sample."""
        return self._store is not None and sample.sample_id in self._store

    def has_all(self, sample_ids: Collection[str]) -> bool:
        """Return whether the store has a file for each of the samples."""
        return self._store is not None and set(sample_ids) <= set(self._store.sample_ids())

    def read(self, sample: Tokens) -> HiddenStates | None:
        """Return stored states; None when there are none that pass their checks."""
        return None if self._store is None else self._store.get(sample)

    def begin(self, greeting: Greeting) -> None:
        """Make the store ready for the states of a server.

        Raises:
            HiddenStateError: it holds another one, or cannot be made.
        """
        self.item_bytes = greeting.dtype.itemsize
        if not self.keeps or self._open is None:
            return
        if self._store is None:
            self._store = self._open(greeting)
        if self._store is None or (held := self._store.identity.dtype) == FLOAT8:
            return
        where = f"hidden_states.store_path={self._settings.store_path}: holds {held} states"
        if self._settings.store_dtype is StoreDtype.float8_e4m3fn:
            raise HiddenStateError(
                f"{where}, this run keeps {FLOAT8} (hidden_states.store_dtype): use another folder"
            )
        if held != greeting.dtype_name:
            raise HiddenStateError(
                f"{where}, the server delivers {greeting.dtype_name}: start the server with "
                f"--dtype {held}, or use another folder"
            )

    def keep(self, sample: Tokens, states: Float[Tensor, "token layer hidden"]) -> HiddenStates:
        """Put states into the store and return the layers the trainer reads.

        When there is no room the states are used all the same, unless they must be kept.

        Raises:
            HiddenStateOutageError: they must be kept, and no room was made in time.
            HiddenStateError: the store cannot be written for another reason.
        """
        assert self._store is not None
        began = time.monotonic()
        while True:
            try:
                return self._store.put(sample, HiddenStates(states[:, :-1], states[:, -1]))
            except StoreFullError as error:
                self._say_full(error)
                if not self._must_keep:
                    self.num_unkept += 1
                    return self._select(states)
                limit = self._settings.fetch.outage_timeout_seconds
                if time.monotonic() - began > limit:
                    raise HiddenStateOutageError(
                        f"hidden_states.store_path={self._settings.store_path}: no room for "
                        f"{limit:.0f} s (hidden_states.fetch.outage_timeout_seconds): {error}. "
                        "Free space and repeat this command: it goes on where it stopped"
                    ) from error
            if self._closed.wait(min(_LOOK_AGAIN_SECONDS, limit / 4)):
                return self._select(states)

    def stop_waiting(self) -> None:
        """Let whoever waits for room go on without keeping."""
        self._closed.set()

    def close(self) -> None:
        """Need nothing any more; nobody may be reading or writing."""
        if self._reader is not None:
            self._reader.close()
        if self._store is not None:
            self._store.close()
        if self.num_unkept:
            _log.warning("%d samples were used but not kept: no room", self.num_unkept)

    def _select(self, states: Tensor) -> HiddenStates:
        if self._store is not None:
            states = self._store.as_stored(states)
        served = self.served_layer_ids
        if served != self._layer_ids:
            states = states[:, [served.index(i) for i in self._layer_ids]]
        return HiddenStates(states[:, :-1], states[:, -1])

    def _say_full(self, error: HiddenStateError) -> None:
        if self.num_unkept == 0 and not self._said_full:
            self._said_full = True
            consequence = "waiting for room" if self._must_keep else "going on without keeping"
            _log.warning("%s; %s", error, consequence)

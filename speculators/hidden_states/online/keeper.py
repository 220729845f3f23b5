"""The store beside servers: what is read from it, what is put into it, and what it must be."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from speculators.config.schema.hidden_states import HiddenStatesConfig, OnGenerate, OnMissing
from speculators.errors import HiddenStateError, HiddenStateOutageError
from speculators.hidden_states.online.handshake import Greeting
from speculators.hidden_states.store import HiddenStateStore
from speculators.hidden_states.types import HiddenStates, Tokens

_log = logging.getLogger(__name__)
_LOOK_AGAIN_SECONDS = 5.0

StoreOpener = Callable[[Greeting | None], HiddenStateStore | None]
"""Opens the configured store. Given None: one that exists, of any number format, or None; given
what a server turned out to be: begins one where there is none."""


class StoreKeeper:
    """Reads and fills the configured store; there may be none. Used by several threads.

    Args:
        settings: `hidden_states` of the configuration.
        layer_ids: ids the trainer reads, the last stream included.
        open_store: opens the configured store, or None.
        must_keep: wait for room when the disk is full.

    Attributes:
        keeps: whether generated states go into the store.
        num_unkept: samples that could not be kept because the disk was full.
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
        self._must_keep = must_keep
        self._open = open_store
        self._closed = threading.Event()
        self._store = None if open_store is None else open_store(None)
        if self._store is not None:
            self.item_bytes = getattr(torch, self._store.identity.dtype).itemsize

    @property
    def served_layer_ids(self) -> tuple[int, ...]:
        """Ids a server's files must hold: a store that is filled needs all of its own."""
        if self.keeps and self._store is not None:
            return self._store.layer_ids
        return self._layer_ids

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
        name = greeting.dtype_name
        if self._store is not None and self._store.identity.dtype != name:
            raise HiddenStateError(
                f"hidden_states.store_path={self._settings.store_path}: holds "
                f"{self._store.identity.dtype} states, the server delivers {name}: start the "
                f"server with --dtype {self._store.identity.dtype}, or use another folder"
            )

    def keep(self, sample: Tokens, states: Float[Tensor, "token layer hidden"]) -> HiddenStates:
        """Put states into the store and return the layers the trainer reads.

        When the disk is full the states are used all the same, unless they must be kept.

        Raises:
            HiddenStateOutageError: they must be kept, and the disk stayed full.
            HiddenStateError: the store cannot be written for another reason.
        """
        assert self._store is not None
        began = time.monotonic()
        while True:
            try:
                return self._store.put(sample, HiddenStates(states[:, :-1], states[:, -1]))
            except HiddenStateError as error:
                if not _disk_is_full(error):
                    raise
                self._say_full(error)
                if not self._must_keep:
                    self.num_unkept += 1
                    return self._select(states)
                limit = self._settings.fetch.outage_timeout_seconds
                if time.monotonic() - began > limit:
                    raise HiddenStateOutageError(
                        f"hidden_states.store_path={self._settings.store_path}: disk full for "
                        f"{limit:.0f} s (hidden_states.fetch.outage_timeout_seconds). Free space "
                        "and repeat this command: it goes on where it stopped"
                    ) from error
            if self._closed.wait(min(_LOOK_AGAIN_SECONDS, limit / 4)):
                return self._select(states)

    def close(self) -> None:
        """Stop waiting for room."""
        self._closed.set()
        if self.num_unkept:
            _log.warning("%d samples were used but not kept: disk full", self.num_unkept)

    def _select(self, states: Tensor) -> HiddenStates:
        served = self.served_layer_ids
        if served != self._layer_ids:
            states = states[:, [served.index(i) for i in self._layer_ids]]
        return HiddenStates(states[:, :-1], states[:, -1])

    def _say_full(self, error: HiddenStateError) -> None:
        if self.num_unkept == 0:
            consequence = "waiting for room" if self._must_keep else "going on without keeping"
            _log.warning("%s; %s", error, consequence)


def _disk_is_full(error: HiddenStateError) -> bool:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(f"os error {code}" in str(cause) for code in (errno.ENOSPC, errno.EDQUOT))

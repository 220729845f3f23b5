"""Samples, stores and streams for the tests of the online source."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from speculators.config.schema.hidden_states import StoreDtype
from speculators.data.types import sample_id_of
from speculators.hidden_states.float8 import stored_dtype
from speculators.hidden_states.identity import StoreIdentity
from speculators.hidden_states.online.handshake import Greeting
from speculators.hidden_states.online.keeper import StoreOpener
from speculators.hidden_states.online.source import OnlineSource
from speculators.hidden_states.store import HiddenStateStore
from speculators.hidden_states.types import HiddenStates

LAYER_IDS = (1, 3, 4)


@dataclass(frozen=True)
class Row:
    input_ids: Tensor
    sample_id: str

    @property
    def loss_mask(self) -> Tensor:
        return torch.ones_like(self.input_ids, dtype=torch.bool)


def rows(count: int, *, seed: int = 1, length: int = 12) -> list[Row]:
    """Return samples of different lengths and tokens."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        tokens = torch.randint(97, (length + i % 5,), generator=random)
        found.append(Row(tokens, sample_id_of(tokens)))
    return found


def identity(dtype: str, layer_ids: Sequence[int] = LAYER_IDS) -> StoreIdentity:
    return StoreIdentity(
        verifier="toy",
        verifier_revision="1",
        layer_ids=tuple(layer_ids),
        num_layers=4,
        hidden_size=32,
        dtype=dtype,
        tokenizer_hash="0" * 64,
        engine="fake",
    )


def store_opener(
    folder: Path, dtype: StoreDtype = StoreDtype.same, max_bytes: int | None = None
) -> StoreOpener:
    def open_store(greeting: Greeting | None) -> HiddenStateStore | None:
        if greeting is None and not (folder / "store.json").exists():
            return None
        name = "any" if greeting is None else stored_dtype(dtype, greeting.dtype_name)
        return HiddenStateStore.open(
            folder, identity(name), create=greeting is not None, max_bytes=max_bytes
        )

    return open_store


def collect(source: OnlineSource, samples: Sequence[Row], group: int = 2) -> list[Tensor | None]:
    """Stream samples in groups and return their states, layers stacked again."""
    groups = [samples[i : i + group] for i in range(0, len(samples), group)]
    return [stacked(s) for states in source.stream(groups) for s in states]


def stacked(states: HiddenStates | None) -> Tensor | None:
    return None if states is None else torch.cat([states.aux, states.last[:, None]], dim=1)


def wait_until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for what is bound to come, however loaded the machine is."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert true()


@contextmanager
def once_said(
    caplog: pytest.LogCaptureFixture, text: str, action: Callable[[], object]
) -> Iterator[None]:
    """Do something when the log first holds a text, however long that takes.

    At the end of the block it must have been said and done.
    """
    over = threading.Event()
    done: list[bool] = []

    def watch() -> None:
        while text not in caplog.text:
            if over.wait(0.005):
                return
        action()
        done.append(True)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert done, f"nobody said {text!r}"


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

"""Peak of the bytes held by tensors made inside a block of code, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts every storage an operation returns for as long as it lives.

    What a kernel allocates and frees within one call is not seen.

    Attributes:
        peak: largest number of bytes alive at one time.
        largest: bytes of the largest single tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known: set[int] = set()

    def begin(self) -> int:
        """Forget the peak so far and return it: a part of the block begins."""
        before, self.peak = self.peak, self.now
        return before

    def end(self, before: int) -> int:
        """Return the peak since `begin` returned `before`, and go on with the whole block's."""
        mine, self.peak = self.peak, max(self.peak, before)
        return mine

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation and book what it returns."""
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor):
                self._book(value.untyped_storage(), made_here=False)
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self._book(value.untyped_storage(), made_here=True)
        return out

    def _book(self, storage: torch.UntypedStorage, *, made_here: bool) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes() if made_here else 0
        self.now += size
        self.peak = max(self.peak, self.now)
        self.largest = max(self.largest, size)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

"""Names of the parts of a training step, for whoever wants to watch them.

Nobody watches as a rule: then a part is its function and one comparison.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Observer = Callable[[str], AbstractContextManager[None]]
"""Called with the name of a part; the part runs inside what it returns."""

_observer: Observer | None = None


def part(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare that a function is a part of the step, under a name people know."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> R:
            if _observer is None:
                return function(*args, **options)
            with _observer(name):
                return function(*args, **options)

        return call

    return decorate


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Let `observer` see every part that runs inside the block; one observer at a time."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before

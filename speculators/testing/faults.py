"""What can go wrong between a trainer and a vLLM server, one name each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum


class FaultKind(Enum):
    """How one completion goes wrong: first the answer, then the file.

    `death` ends the whole server with the request, until somebody starts it again.
    """

    status = "status"
    reset = "reset"
    hang = "hang"
    death = "death"
    truncated_json = "truncated_json"
    truncated_body = "truncated_body"
    wrong_echo = "wrong_echo"
    no_path = "no_path"
    path = "path"

    late_file = "late_file"
    missing_file = "missing_file"
    truncated_file = "truncated_file"
    foreign_file = "foreign_file"
    nan = "nan"
    zeros = "zeros"
    fewer_rows = "fewer_rows"
    wrong_layers = "wrong_layers"
    loud = "loud"
    stuck_lock = "stuck_lock"
    no_lock = "no_lock"


@dataclass(frozen=True)
class Fault:
    """One failure.

    Attributes:
        kind: what happens.
        status: HTTP status of `status`.
        seconds: how long `hang` hangs, how late `late_file` is.
        path: what `path` answers.
        message: text of the error body of `status`.
    """

    kind: FaultKind
    status: int = 500
    seconds: float = 0.0
    path: str = ""
    message: str = "injected"


@dataclass(frozen=True)
class Call:
    """A completion as the server received it.

    Attributes:
        number: 0 for the first one.
        token_ids: the prompt.
        request_id: id of the answer.
        max_tokens: longest answer allowed; 1 where only states are wanted.
    """

    number: int
    token_ids: tuple[int, ...]
    request_id: str
    max_tokens: int = 1


@dataclass
class _Planned:
    fault: Fault
    left: int | None
    when: Callable[[Call], bool]


class FaultPlan:
    """Which calls suffer which fault; safe to change while the server runs."""

    def __init__(self) -> None:
        self._planned: list[_Planned] = []
        self._lock = threading.Lock()

    def add(
        self,
        fault: Fault,
        *,
        count: int | None = 1,
        when: Callable[[Call], bool] | None = None,
    ) -> None:
        """Let the next `count` calls for which `when` holds suffer `fault`; None: all of them."""
        with self._lock:
            self._planned.append(_Planned(fault, count, when or (lambda call: True)))

    def add_for(self, fault: Fault, prompt: Sequence[int], *, count: int | None = 1) -> None:
        """Let the next `count` calls with exactly this prompt suffer `fault`."""
        wanted = tuple(prompt)
        self.add(fault, count=count, when=lambda call: call.token_ids == wanted)

    def clear(self) -> None:
        """Forget every planned fault."""
        with self._lock:
            self._planned.clear()

    def take(self, call: Call) -> Fault | None:
        """Return the fault this call suffers; the first planned one that fits."""
        with self._lock:
            for planned in self._planned:
                if planned.left != 0 and planned.when(call):
                    if planned.left is not None:
                        planned.left -= 1
                    return planned.fault
        return None

"""`python -m speculators.launch.agent`: torchrun that leaves the talking to its workers.

Arguments are those of `torch.distributed.run`. A failed worker has reported why, so the agent adds
nothing; it ends the other workers and exits with a status that is not 0.

A signal goes on to the workers once, and then there is time for the step and its checkpoint. Left
to itself the agent kills them after 30 s, and dies of a third signal without them: one key press
brings two, and Slurm signals every process.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
"""What asks a run to stop. Blocked in the agent, and so in workers until they unblock them."""


def main(argv: Sequence[str]) -> int:
    """Run the workers to their end and return the exit status."""
    logging.disable(logging.WARNING)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_hear_one_signal, name="signals", daemon=True).start()
    try:
        run(parse_args(list(argv)))
    except ChildFailedError:
        return 1
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


def _hear_one_signal() -> None:
    """Let torchrun's handler have the first signal, and none after it."""
    number = signal.Signals(signal.sigwait(SIGNALS))
    if signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler):
        os._exit(128 + number)  # it is not there yet, and neither are workers
    _thread.interrupt_main(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

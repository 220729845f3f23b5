"""`python -m speculators.launch.agent`: torchrun that leaves the talking to its workers.

Arguments are those of `torch.distributed.run`. A failed worker has reported why, so the agent adds
nothing; it ends the other workers and exits with a status that is not 0.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run


def main(argv: Sequence[str]) -> int:
    """Run the workers to their end and return the exit status."""
    logging.disable(logging.WARNING)
    try:
        run(parse_args(list(argv)))
    except ChildFailedError:
        return 1
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

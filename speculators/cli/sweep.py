"""One run of a multirun: skipped when it has finished before, kept apart when it fails."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from hydra.conf import HydraConf
from hydra.experimental.callback import Callback

from speculators.config.identity import changes, fingerprint, result_settings
from speculators.data.turns import one_at_a_time
from speculators.errors import ConfigError, DataError, SpeculatorsError, SweepError
from speculators.sweep.records import (
    Record,
    Status,
    plain_values,
    read_record,
    read_records,
    write_record,
)

_SIGNALLED = 128


class StopSweep(BaseException):
    """Ends a multirun, as KeyboardInterrupt does; launchers go on after any other exception.

    Args:
        error: why.
    """

    def __init__(self, error: SpeculatorsError) -> None:
        super().__init__(str(error))
        self.error = error


class SweepFolder(Callback):
    """Notes where the runs of a multirun lie, for what follows it in the same process."""

    path: ClassVar[Path | None] = None

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Take the folder from the configuration that every run comes from."""
        SweepFolder.path = Path(config.hydra.sweep.dir).absolute()


def attempt(
    composed: Any, state: HydraConf, objective: str, start: str, stage: Callable[[], Any]
) -> float | None:
    """Do one run of a multirun and return its objective; None when it fails.

    A run that has finished before is not run again; one that failed or was stopped goes on where
    it can. Of two processes with the same run one waits for the other.

    Args:
        composed: the run's configuration.
        state: Hydra's own.
        objective: name of the number it is compared by.
        start: which start of the sweep this is.
        stage: does the work.

    Raises:
        StopSweep: a signal stopped it, or its folder belongs to another run.
    """
    folder = Path(state.runtime.output_dir)
    settings = result_settings(composed)
    record = Record(
        folder.name,
        fingerprint(settings),
        changes([str(text) for text in state.overrides.task]),
        settings,
        objective,
        start=start,
    )
    with one_at_a_time(folder):
        before = _earlier(folder)
        if before is not None and before.fingerprint != record.fingerprint:
            raise StopSweep(
                ConfigError(
                    f"{folder}: holds another run (its settings differ): leave hydra.sweep.subdir "
                    "as it is, or give hydra.sweep.dir=NEW"
                )
            )
        if before is not None and before.status is Status.finished:
            print(f"{folder.name}: finished before, not run again", flush=True)
            record = replace(before, objective=objective, start=start)
            write_record(folder, record)
            return record.value
        return _run(folder, record, stage)


def _earlier(folder: Path) -> Record | None:
    try:
        return read_record(folder)
    except DataError:  # damaged: what it said is done again
        return None


def _run(folder: Path, record: Record, stage: Callable[[], Any]) -> float | None:
    write_record(folder, record)
    begun = time.monotonic()

    def ended(status: Status, **more: Any) -> Record:
        found = record.ended(status, time.monotonic() - begun, **more)
        write_record(folder, found)
        return found

    try:
        result = stage()
    except SpeculatorsError as error:
        if error.exit_code > _SIGNALLED:
            ended(Status.stopped, error=_one_line(error))
            raise StopSweep(error) from error
        ended(Status.failed, error=_one_line(error))
        print(f"{folder.name}: failed: {error}", file=sys.stderr, flush=True)
        return None
    except Exception as error:  # a bug in one run is no reason to give up the others
        text = traceback.format_exc()
        ended(Status.failed, error=f"{type(error).__name__}: {_one_line(error)}", traceback=text)
        print(f"{folder.name}: failed:\n{text}", file=sys.stderr, flush=True)
        return None
    except BaseException:
        ended(Status.stopped, error="interrupted")
        raise
    return ended(Status.finished, values=plain_values(result)).value


def _one_line(error: BaseException) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())


def conclude_sweep(start: str) -> None:
    """Write the leaderboard of the multirun that has just ended.

    Args:
        start: which start of the sweep that was.

    Raises:
        SweepError: runs of this start failed, or their processes were killed.
    """
    folder = SweepFolder.path
    if folder is None or not any(folder.glob("[!.]*/job.json")):
        return
    from speculators.sweep.command import conclude
    from speculators.sweep.table import unfinished

    conclude(folder)
    records = [record for record in read_records(folder) if record.start == start]
    failed = [record for record in records if record.status is not Status.finished]
    if failed:
        lines = [unfinished(record) for record in failed]
        more = f"{len(failed)} of {len(records)} runs did not finish; the same command tries again"
        raise SweepError([*lines, more])

"""`speculators doctor`: is a checkpoint served as it was trained, and what is wrong with a run?"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from speculators.config.schema import Config
from speculators.console import marked, open_console
from speculators.doctor.certificate import PARITY_FILE
from speculators.doctor.checkpoint import CheckpointExamination
from speculators.doctor.finding import Verdict
from speculators.doctor.run import diagnose_run
from speculators.doctor.table import findings_table
from speculators.errors import CheckpointError, ConfigError
from speculators.launch.threads import limit_threads


def run(config: Config, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Examine `config.checkpoint`, or explain `config.run`; print and write down what was found.

    Args:
        config: see `CheckpointExamination` and `diagnose_run`.
        argv: command line; not kept.

    Raises:
        CheckpointError: something differs in the checkpoint; the first stage that does.
        DataError: no run directory.
        LaunchError: the server of `doctor.endpoint` cannot be asked.
        ConfigError: both a checkpoint and a run are given.
    """
    limit_threads(config)
    console = open_console()
    if config.run is not None and config.checkpoint is not None:
        raise ConfigError("run, checkpoint: give one of the two: run=DIR looks at its best one")
    try:
        if config.run is None:
            return _checkpoint(config, console)
        found = diagnose_run(config, console)
        found.show(console)
        console.print(f"\nwritten to {found.write()}", soft_wrap=True)
        return found.to_dict()
    finally:
        # Nothing of this command belongs into a run directory.
        with contextlib.suppress(OSError):
            Path(config.output_dir).rmdir()


def _checkpoint(config: Config, console: Console) -> dict[str, Any]:
    examination = CheckpointExamination(config, console)
    certificate = examination.certificate()
    console.print(findings_table(certificate.findings))
    certificate.write(examination.folder, checkpoint=True)
    console.print(f"written to {examination.folder / PARITY_FILE}", soft_wrap=True)
    first = certificate.first_failure
    if first is not None:
        raise CheckpointError(f"doctor: {first.line}")
    counts = [finding.verdict for finding in certificate.findings]
    console.print(
        marked(
            "parity:",
            "bold green",
            f" {counts.count(Verdict.passed)} stages agree, "
            f"{counts.count(Verdict.unchecked)} could not be checked here",
        )
    )
    return certificate.to_dict(examination.folder)

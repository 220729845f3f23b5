"""`speculators doctor`: proves that a checkpoint is served as it was trained."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from speculators.config.schema import Config
from speculators.doctor.certificate import PARITY_FILE
from speculators.doctor.checkpoint import CheckpointExamination
from speculators.doctor.finding import Verdict
from speculators.doctor.table import findings_table
from speculators.errors import CheckpointError
from speculators.launch.threads import limit_threads


def run(config: Config, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Examine `config.checkpoint`, print what was found, and write it into the checkpoint.

    Args:
        config: see `CheckpointExamination`.
        argv: command line; not kept.

    Raises:
        CheckpointError: something differs; the first stage that does.
        LaunchError: the server of `doctor.endpoint` cannot be asked.
    """
    limit_threads(config)
    console = Console(highlight=False)
    try:
        return _checkpoint(config, console)
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
        f"[bold green]parity:[/] {counts.count(Verdict.passed)} stages agree, "
        f"{counts.count(Verdict.unchecked)} could not be checked here"
    )
    return certificate.to_dict(examination.folder)

"""`speculators doctor run=DIR`: why a run's drafter is accepted less than it could be."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from speculators.config.schema import Config
from speculators.console import marked
from speculators.conversion.durable import replace_text
from speculators.data.prepared import PreparedData
from speculators.doctor.case import NOW, Case
from speculators.doctor.chain import examine
from speculators.doctor.checkpoint import CheckpointExamination
from speculators.doctor.diagnosis import Diagnosis, diagnose
from speculators.doctor.lab import Lab
from speculators.doctor.rulebook import RULES
from speculators.doctor.signatures import Signature, signatures
from speculators.errors import DataError, SpeculatorsError
from speculators.launch.data_stage import prepare_data

DIAGNOSIS_FILE = "diagnosis.json"


@dataclass(frozen=True)
class RunDiagnosis:
    """What was found in a run.

    Attributes:
        folder: the run directory.
        signatures: what its numbers look like.
        diagnoses: named causes, the one to mend first in front.
        no_tests: why tests could not be made; empty where they were.
    """

    folder: Path
    signatures: Sequence[Signature]
    diagnoses: Sequence[Diagnosis]
    no_tests: str

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "run": str(self.folder),
            "causes": [one.to_dict() for one in self.diagnoses],
            "signatures": [one.to_dict() for one in self.signatures],
            "tests_not_made": self.no_tests or None,
        }

    def write(self) -> Path:
        """Write `diagnosis.json` into the run directory and return its path."""
        path = self.folder / DIAGNOSIS_FILE
        replace_text(path, json.dumps(self.to_dict(), indent=2) + "\n")
        return path

    def show(self, console: Console) -> None:
        """Print it for people."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("signature", "numbers", "usually"):
            table.add_column(name, overflow="fold")
        for one in self.signatures:
            table.add_row(one.name, one.numbers, one.reading)
        console.print(table)
        if self.no_tests:
            console.print(f"tests not made: {self.no_tests}", soft_wrap=True)
        for number, one in enumerate(self.diagnoses, 1):
            rest = f" ({one.certainty.value}): {one.cause.means}"
            head = marked(f"\n{number}. {one.cause.name}", "bold red", rest)
            console.print(head, soft_wrap=True)
            for name, text in (("seen", one.signature), ("test", one.test), ("change", one.change)):
                if text:
                    console.print(f"   {name + ':':<8} {text}", soft_wrap=True)
        if not self.diagnoses:
            nothing = ": nothing of what is known is wrong here"
            console.print(marked("\nno named cause", "bold green", nothing))


def diagnose_run(config: Config, console: Console) -> RunDiagnosis:
    """Read the run `config.run` and look for causes.

    Args:
        config: `run` and `doctor` are used.
        console: shows progress.

    Raises:
        DataError: no run directory.
        CheckpointError: a checkpoint or certificate that cannot be read.
    """
    folder = Path(config.run or "").expanduser()
    case = Case.read(folder)
    if config.doctor.tests:
        case = with_tests(config, case, console)
    else:
        case = dataclasses.replace(case, no_lab="doctor.tests=false")
    return RunDiagnosis(folder, signatures(case), diagnose(case, RULES), case.no_lab)


def with_tests(config: Config, case: Case, console: Console) -> Case:
    """Examine the best checkpoint, and open a laboratory where its verifier and data are here.

    Nothing is prepared or generated for a diagnosis.
    """
    if case.best is None:
        return dataclasses.replace(case, no_lab="the run has no complete checkpoint")
    asked = dataclasses.replace(config, checkpoint=str(case.best))
    try:
        examination = CheckpointExamination(asked, console)
        now = {NOW: examine(examination.subject)}
        case = dataclasses.replace(case, certificates={**case.certificates, **now})
        data = _prepared(config, case, examination)
    except SpeculatorsError as error:
        return dataclasses.replace(case, no_lab=str(error).splitlines()[0])
    if data is None:
        return dataclasses.replace(case, no_lab="its prepared data are not here (cache_dir)")
    lab = Lab(config, examination, case.checkpoints[-1], data, console)
    return dataclasses.replace(case, lab=lab)


def _prepared(
    config: Config, case: Case, examination: CheckpointExamination
) -> PreparedData | None:
    for place in dict.fromkeys((case.config.cache_dir, config.cache_dir)):
        same = dataclasses.replace(case.config, cache_dir=place)
        with contextlib.suppress(DataError):
            return prepare_data(same, examination.verifier, only_found=True)
    return None

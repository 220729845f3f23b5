"""What a run has left behind, and a laboratory where its causes can be tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speculators.config.loading import load_run_config
from speculators.config.schema import Config
from speculators.doctor.certificate import read_findings
from speculators.doctor.finding import Finding
from speculators.errors import DataError
from speculators.evaluation.report.run_files import Line, RunFiles, is_validation
from speculators.training.checkpoint import BEST_LINK, CheckpointFolder
from speculators.training.state import read_state

if TYPE_CHECKING:
    from speculators.doctor.lab import Lab

START, NOW = "start", "now"
"""Places of examinations that are no checkpoints."""

_LAST_LINES = 5


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        files: what lies in its directory.
        config: what it was started with.
        certificates: findings by where they were made: `start`, a checkpoint's name, `now`.
        checkpoints: complete ones, oldest first.
        best: the one `checkpoint_best` names.
        lab: where tests are made; None where there are no verifier and no data to make them with.
        no_lab: why there is none.
    """

    files: RunFiles
    config: Config
    certificates: Mapping[str, list[Finding]] = field(default_factory=dict)
    checkpoints: tuple[Path, ...] = ()
    best: Path | None = None
    lab: Lab | None = None
    no_lab: str = ""

    @classmethod
    def read(cls, folder: Path) -> Case:
        """Read a run directory.

        Raises:
            DataError: no such directory, or not of a run.
            ConfigError: its `resolved.yaml` cannot be read.
            CheckpointError: a certificate cannot be read.
        """
        files = RunFiles.read(folder)
        if not files.config:
            raise DataError(f"run={folder}: holds no resolved.yaml; give the directory of a run")
        root = folder / "checkpoints"
        complete = CheckpointFolder(root, None).complete()
        best = root / BEST_LINK
        certificates = {START: read_findings(folder)}
        certificates |= {path.name: read_findings(path) for path in complete}
        return cls(
            files=files,
            config=load_run_config(folder / "resolved.yaml"),
            certificates={name: found for name, found in certificates.items() if found},
            checkpoints=tuple(complete),
            best=best.resolve() if best.exists() else None,
        )

    @cached_property
    def training(self) -> list[Line]:
        """Logged steps."""
        return [line for line in self.files.metrics if line.get("kind") == "train"]

    @cached_property
    def validations(self) -> list[Line]:
        """Lines of validation."""
        return [line for line in self.files.metrics if is_validation(line)]

    def at_end(self, key: str) -> float | None:
        """Return the mean of a training metric over the last logged steps."""
        values = [line[key] for line in self.training[-_LAST_LINES:] if line.get(key) is not None]
        return sum(values) / len(values) if values else None

    @property
    def validated(self) -> float | None:
        """Acceptance length of the best validation, walked as decoding walks."""
        found = [
            line["acceptance_length"] for line in self.validations if "acceptance_length" in line
        ]
        return max(found) if found else None

    @property
    def decoded(self) -> Mapping[str, Any]:
        """What decoding found: `evaluation.json`, else `result.json`."""
        if self.files.evaluation.get("acceptance_length") is not None:
            return self.files.evaluation
        return self.files.result if self.files.result.get("acceptance_length") else {}

    @property
    def epochs(self) -> float:
        """Passes over the training rows so far."""
        if self.files.result.get("epochs"):
            return float(self.files.result["epochs"])
        return float(self.training[-1].get("epoch", 0)) + 1 if self.training else 0.0

    def bad_steps(self) -> tuple[int, int, str | None]:
        """Return skipped steps, all steps, and the first tensor that was not finite."""
        if not self.checkpoints:
            return 0, 0, None
        state = read_state(self.checkpoints[-1])
        return state.bad_steps, state.position.step, state.first_bad_tensor

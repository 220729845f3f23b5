"""`parity.json`: what was compared, what came out, and everything one needs to believe it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import speculators
from speculators.conversion.durable import replace_text
from speculators.conversion.integrity import CONFIG_FILE, WEIGHTS_FILE
from speculators.doctor.finding import Finding, Verdict
from speculators.doctor.recording import Recording
from speculators.errors import CheckpointError
from speculators.launch.provenance import package_versions

PARITY_FILE = "parity.json"
_FORMAT = 1


@dataclass(frozen=True)
class Certificate:
    """Findings of one examination.

    Attributes:
        findings: of every stage, in order.
        recording: what training knew, kept for later comparisons.
        examined: when and by what: `training, step 40` or `speculators doctor`.
        facts: further plain values, by name.
    """

    findings: Sequence[Finding]
    recording: Recording | None
    examined: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first_failure(self) -> Finding | None:
        """The first stage that differs."""
        return next((f for f in self.findings if f.verdict is Verdict.failed), None)

    @property
    def passed(self) -> bool:
        """Whether nothing differs, and something was compared."""
        verdicts = [finding.verdict for finding in self.findings]
        return Verdict.failed not in verdicts and Verdict.passed in verdicts

    def to_dict(self, folder: Path | None = None) -> dict[str, Any]:
        """Return everything, ready for JSON.

        Args:
            folder: the checkpoint, whose files are named by their hashes.
        """
        first = self.first_failure
        names = {
            verdict: [f.stage for f in self.findings if f.verdict is verdict] for verdict in Verdict
        }
        return {
            "format": _FORMAT,
            "passed": self.passed,
            "first_failure": None if first is None else f"{first.stage}: {first.line}",
            "stages_passed": len(names[Verdict.passed]),
            "stages_not_checked": ", ".join(names[Verdict.unchecked]),
            "examined": self.examined,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "speculators": speculators.__version__,
            **self.facts,
            "packages": package_versions(),
            "files": {} if folder is None else hashes(folder),
            "findings": [finding.to_dict() for finding in self.findings],
            "recording": None if self.recording is None else self.recording.to_dict(),
        }

    def write(self, folder: Path, *, checkpoint: bool) -> None:
        """Write `parity.json` in one piece.

        Args:
            folder: where.
            checkpoint: whether it is a checkpoint, whose files are to be named.

        Raises:
            CheckpointError: it cannot be written.
        """
        values = self.to_dict(folder if checkpoint else None)
        replace_text(folder / PARITY_FILE, json.dumps(values, indent=1) + "\n")


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of a checkpoint's files, by name."""
    found = {}
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if (path := folder / name).is_file():
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def read_findings(folder: Path) -> list[Finding]:
    """Return the findings of `parity.json`; none where there is no such file.

    Raises:
        CheckpointError: it cannot be read.
    """
    values = _read(folder)
    return [_parsed(folder, Finding.from_dict, one) for one in values.get("findings", ())]


def read_recording(folder: Path) -> Recording | None:
    """Return what training recorded in `parity.json`; None where it recorded nothing.

    Raises:
        CheckpointError: it cannot be read.
    """
    values = _read(folder).get("recording")
    return None if values is None else _parsed(folder, Recording.from_dict, values)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / PARITY_FILE
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); delete it") from error
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: was written by another version; delete it")
    return values


def _parsed(folder: Path, parse: Any, values: Any) -> Any:
    try:
        return parse(values)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{folder / PARITY_FILE}: is damaged ({reason}); delete it"
        ) from error

"""What one stage found, for people and for files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from speculators.doctor.causes import Cause


class Verdict(Enum):
    """What became of a check."""

    passed = "passed"
    failed = "failed"
    unchecked = "not checked"


@dataclass(frozen=True)
class Finding:
    """What one stage found; of a chain the first failed one counts.

    Attributes:
        stage: name of the stage.
        verdict: what became of it.
        text: what holds, what differs, or why it was not checked.
        where: the tensor or position it is about.
        measured: the value found.
        allowed: the value it is held against.
        cause: name of the likely cause, of a failure.
        evidence: what speaks for that cause.
        change: what to do.
    """

    stage: str
    verdict: Verdict
    text: str
    where: str = ""
    measured: str = ""
    allowed: str = ""
    cause: str = ""
    evidence: str = ""
    change: str = ""

    @property
    def line(self) -> str:
        """The finding as one line."""
        line = self.text + (f" at {self.where}" if self.where else "")
        if self.measured:
            bound = f" (allowed {self.allowed})" if self.allowed else ""
            line += f": {self.measured}{bound}"
        for more in (self.evidence, f"{self.cause}: {self.change}" if self.cause else ""):
            line += f"; {more}" if more else ""
        return line

    def to_dict(self) -> dict[str, Any]:
        """Return what is not empty, ready for JSON."""
        values = {**vars(self), "verdict": self.verdict.value}
        return {name: value for name, value in values.items() if value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finding:
        """Rebuild from `to_dict`."""
        return cls(**{**values, "verdict": Verdict(values["verdict"])})


@dataclass(frozen=True)
class Stage:
    """Names a stage, and makes its findings.

    Attributes:
        name: short, unique in the chain.
        proves: what it proves, for the manual.
    """

    name: str
    proves: str

    def passed(self, text: str, **values: str) -> Finding:
        """Return that it holds."""
        return Finding(self.name, Verdict.passed, text, **values)

    def unchecked(self, why: str) -> Finding:
        """Return that it could not be checked here."""
        return Finding(self.name, Verdict.unchecked, why)

    def failed(self, cause: Cause, text: str, **values: str) -> Finding:
        """Return what differs; what to do is the cause's unless `change` says better."""
        values = {"change": cause.change, **values}
        return Finding(self.name, Verdict.failed, text, cause=cause.name, **values)

"""From what a run shows to a named cause: rules, each with its own test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from speculators.doctor.causes import Cause

if TYPE_CHECKING:
    from speculators.doctor.case import Case


class Certainty(Enum):
    """How sure a cause is."""

    confirmed = "confirmed"
    suspected = "suspected"


@dataclass(frozen=True)
class Diagnosis:
    """One named cause.

    Attributes:
        cause: its name, meaning and remedy.
        certainty: whether a test that tells it from others was made.
        signature: what the run shows.
        test: the test and its result, or the one that would be made.
        change: what to do.
    """

    cause: Cause
    certainty: Certainty
    signature: str
    test: str
    change: str

    @property
    def line(self) -> str:
        """The diagnosis as one line."""
        parts = (f"{self.cause.name} ({self.certainty.value}): {self.signature}", self.test)
        return "; ".join(part for part in (*parts, f"change: {self.change}") if part)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "cause": self.cause.name,
            "means": self.cause.means,
            "certainty": self.certainty.value,
            "signature": self.signature,
            "test": self.test,
            "change": self.change,
        }


@dataclass(frozen=True)
class Rule:
    """Looks for one cause, or for one family that a single test tells apart.

    Attributes:
        causes: what it can find.
        look: returns what it found.
        settles: where it finds something, numbers of training say nothing any more.
        hides: causes that follow from these and are not looked for then.
    """

    causes: tuple[Cause, ...]
    look: Callable[[Case], Diagnosis | None]
    settles: bool = False
    hides: tuple[Cause, ...] = ()


def confirmed(cause: Cause, signature: str, test: str, change: str | None = None) -> Diagnosis:
    """Return a cause whose test was made."""
    return Diagnosis(cause, Certainty.confirmed, signature, test, change or cause.change)


def suspected(cause: Cause, signature: str, test: str, change: str | None = None) -> Diagnosis:
    """Return a cause whose test could not be made here; `test` says which it is."""
    return Diagnosis(cause, Certainty.suspected, signature, test, change or cause.change)


def diagnose(case: Case, rules: Sequence[Rule]) -> list[Diagnosis]:
    """Return what the rules find, in their order.

    Conventions come first: where one is broken, acceptance follows from it and nothing else is
    looked for.
    """
    found: list[Diagnosis] = []
    hidden: set[Cause] = set()
    for rule in rules:
        if set(rule.causes) <= hidden:
            continue
        diagnosis = rule.look(case)
        if diagnosis is None or diagnosis.cause in hidden:
            continue
        found.append(diagnosis)
        hidden.update(rule.hides)
        if rule.settles:
            break
    return found

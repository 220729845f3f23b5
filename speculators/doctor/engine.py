"""What a server answered to some prompts, and what was decoded here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.result import EvaluationResult


@dataclass(frozen=True)
class EngineAnswers:
    """The same prompts, decoded by both.

    Attributes:
        name: engine and address.
        served: by the server; its mismatches are with `here`.
        here: in this process.
        again: decodes them here once more, with the drafter as it is then.
    """

    name: str
    served: EvaluationResult
    here: EvaluationResult
    again: Callable[[], Acceptance]

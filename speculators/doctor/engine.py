"""What a server answered to some prompts, and what was decoded here."""

from __future__ import annotations

from dataclasses import dataclass

from speculators.evaluation.result import EvaluationResult


@dataclass(frozen=True)
class EngineAnswers:
    """The same prompts, decoded by both.

    Attributes:
        name: engine and address.
        served: by the server; its mismatches are with `here`.
        here: in this process.
    """

    name: str
    served: EvaluationResult
    here: EvaluationResult

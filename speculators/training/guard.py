"""The NaN guard: how long a run may go on with steps that were skipped."""

from __future__ import annotations

from typing import Any

from speculators.errors import SpeculatorsError
from speculators.training.state import TrainerState
from speculators.training.step import StepReport

_SHOWN_SAMPLES = 3


def note_bad_step(state: TrainerState, report: StepReport) -> dict[str, Any] | None:
    """Count a step in `state`; return what to record of it when it was skipped, else None."""
    if report.bad_tensor is None:
        state.bad_steps_in_a_row, state.first_bad_tensor = 0, None
        return None
    state.bad_steps += 1
    state.bad_steps_in_a_row += 1
    state.first_bad_tensor = state.first_bad_tensor or report.bad_tensor
    return {"tensor": report.bad_tensor, "samples": list(report.sample_ids[:_SHOWN_SAMPLES])}


def stop_if_lost(state: TrainerState, step: int, max_bad_steps: int, bad: dict[str, Any]) -> None:
    """Stop a run that only skips.

    Args:
        state: counts skipped steps.
        step: steps made until the last of them.
        max_bad_steps: how many in a row are too many.
        bad: what `note_bad_step` returned.

    Raises:
        SpeculatorsError: `max_bad_steps` steps in a row were not finite.
    """
    if state.bad_steps_in_a_row >= max_bad_steps:
        raise SpeculatorsError(
            f"training stopped after step {step}: {state.bad_steps_in_a_row} steps "
            f"in a row were NaN or infinite (training.max_bad_steps), first: "
            f"{state.first_bad_tensor}; lower optimizer.lr, or look at samples "
            f"{', '.join(bad['samples']) or '(unnamed)'}"
        )

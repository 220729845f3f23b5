"""Where a run is heading, and whether it ends early: functions of its validations so far.

They hold for any start of the run, so a resumed one decides as an undisturbed one does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speculators.config.schema import StopWhenConfig
from speculators.training.forecast import Forecast, forecast
from speculators.training.state import TrainerState

_LENGTH = "acceptance_length"


@dataclass(frozen=True)
class Outlook:
    """Forecasts the last validation of a run from those in its state.

    Attributes:
        rules: `training.stop_when`.
        last_step: steps of the whole run.
        longest: acceptance length that cannot be exceeded.
    """

    rules: StopWhenConfig
    last_step: int
    longest: float

    def note(self, state: TrainerState, values: Mapping[str, Any]) -> dict[str, Any]:
        """Take in what validation found at the state's step; return the forecast as metrics."""
        length = values.get(_LENGTH)
        if length is None:
            return {}
        state.curve.append((state.position.step, float(length)))
        expected = self.expected(state)
        return {} if expected is None else expected.to_dict()

    def expected(self, state: TrainerState) -> Forecast | None:
        """Return the forecast for the last step, where there are validations enough."""
        return forecast(state.curve, self.last_step, self.longest)

    def stop_reason(self, state: TrainerState) -> str | None:
        """Return why the run ends before its last step, or None where it goes on."""
        return stop_reason(self.rules, state.curve, self.last_step, self.expected(state))


def stop_reason(
    rules: StopWhenConfig,
    curve: Sequence[tuple[int, float]],
    last_step: int,
    expected: Forecast | None,
) -> str | None:
    """Return why a run ends now, or None where it goes on.

    Args:
        rules: `training.stop_when`.
        curve: (step, acceptance length) of each validation so far.
        last_step: steps of the whole run.
        expected: the forecast made from `curve`.
    """
    if not curve or curve[-1][0] < rules.after_fraction * last_step:
        return None
    lengths = [length for _, length in curve]
    best, since = max(lengths), len(lengths) - 1 - lengths.index(max(lengths))
    if rules.reached is not None and lengths[-1] >= rules.reached:
        return f"acceptance length {lengths[-1]:.3f} has reached {rules.reached:g} (reached)"
    if rules.patience is not None and since >= rules.patience:
        return f"{since} validations brought no better one than {best:.3f} (patience)"
    if expected is None:
        return None
    if rules.forecast_below is not None and expected.high < rules.forecast_below:
        return (
            f"at best {expected.high:.3f} can be expected, less than {rules.forecast_below:g} "
            "(forecast_below)"
        )
    if rules.plateau is not None and expected.high < best + rules.plateau:
        return (
            f"at best {max(expected.high - best, 0.0):.3f} more than {best:.3f} can be expected, "
            f"less than {rules.plateau:g} (plateau)"
        )
    return None

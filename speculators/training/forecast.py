"""What acceptance length a run will end with, from its validations so far.

Acceptance grows ever more slowly, about as tau(t) = a - b t^-c at step t. The exponent is what few
points tell least, so it is not estimated but averaged over: for each c of a fixed grid the rest is
linear, its prediction of the last validation is a Student-t distribution, and the distributions are
weighed by how well their c explains the points. Priors are flat on the final value, on the gain
until then and on log c, and scale-free on the noise. No random number is drawn: equal points give
equal forecasts.

The interval says what noise and exponent leave open. What is no power law is not in it: a rate that
decays to zero usually adds a little at the very end, overfitting takes away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_POINTS = 4
"""Validations that a forecast needs."""

_EXPONENTS = np.geomspace(0.05, 3.0, 50)
_FIRST_SHARE = 0.1  # points before this share of the present step are the start, no power law yet
_LEAST_NOISE = 2e-3  # a drafter's acceptance is never known better, however well few points fit
_GRID = 2001
_LEVELS = (0.025, 0.5, 0.975)


@dataclass(frozen=True)
class Forecast:
    """Acceptance length expected of the last validation.

    Attributes:
        value: median.
        low: lower end of the 95 % interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as it stands in metrics and results."""
        return {
            "forecast_acceptance_length": self.value,
            "forecast_acceptance_length_ci95": [self.low, self.high],
        }


def forecast(curve: Sequence[tuple[int, float]], last_step: int, longest: float) -> Forecast | None:
    """Forecast the acceptance length at the end of a run.

    Args:
        curve: (step, acceptance length) of each validation so far, ascending.
        last_step: step of the last validation to come.
        longest: acceptance length that cannot be exceeded, drafted tokens + 1.

    Returns:
        None with too few points, and when nothing is left to forecast.
    """
    points = np.array(curve, np.float64).reshape(-1, 2)
    if len(points) == 0 or points[-1, 0] >= last_step:
        return None
    steps, values = points[points[:, 0] >= _FIRST_SHARE * points[-1, 0]].T
    if len(steps) < MIN_POINTS or not np.isfinite(values).all():
        return None
    grid = np.linspace(1.0, longest, _GRID)
    below = np.cumsum(_density(grid, steps, values, last_step))
    low, median, high = np.interp(_LEVELS, below / below[-1], grid)
    return Forecast(float(median), float(low), float(high))


def _density(
    grid: NDArray[np.float64],
    steps: NDArray[np.float64],
    values: NDArray[np.float64],
    last_step: int,
) -> NDArray[np.float64]:
    """Return the predictive density over `grid`, up to a factor, averaged over the exponent.

    tau = final - gain * u with u = 1 at the first point and 0 at the last step, so that the
    priors mean the same for every exponent.
    """
    freedom = len(steps) - 2
    powers = steps ** -_EXPONENTS[:, None]
    ends = float(last_step) ** -_EXPONENTS[:, None]
    u = (powers - ends) / (powers[:, :1] - ends)
    design = np.stack([np.ones_like(u), -u], axis=-1)
    inverse = np.linalg.inv(design.transpose(0, 2, 1) @ design)
    fitted = np.einsum("cij,cnj,n->ci", inverse, design, values)
    residuals = values - np.einsum("cni,ci->cn", design, fitted)
    squares = (residuals**2).sum(1) + freedom * _LEAST_NOISE**2
    log_weight = np.linalg.slogdet(inverse)[1] / 2 - freedom / 2 * np.log(squares)
    weight = np.exp(log_weight - log_weight.max())
    scale = np.sqrt(squares / freedom * (1 + inverse[:, 0, 0]))
    z = (grid - fitted[:, :1]) / scale[:, None]
    student = (1 + z**2 / freedom) ** (-(freedom + 1) / 2) / scale[:, None]
    return weight @ student

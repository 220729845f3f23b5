"""What acceptance length a run will end with, from its validations so far.

Acceptance grows ever more slowly: y(t) = a - b t^-c at step t, where y is the acceptance length
itself or its log odds between 1 and the longest possible. Early in a run the second is the
straighter (an acceptance length starts as a curve that bends upwards), later the two agree; few
points do not tell, so both count half. Nor do few points tell the exponent, so it is not estimated
but averaged over: for each c of a fixed grid the rest is linear, its prediction of the last
validation is a Student-t distribution, and the distributions are weighed by how well their c
explains the points. Priors are flat on the final value, on the gain until then and on log c, and
scale-free on the noise. No random number is drawn: equal points give equal forecasts.

The interval says what noise, scale and exponent leave open. What is no power law is not in it: a
rate that decays to zero usually adds a little at the very end, overfitting takes away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_POINTS = 4
"""Validations that a forecast needs."""

_EXPONENTS = np.geomspace(0.05, 3.0, 50)
_FIRST_SHARE = 0.1  # points before this share of the present step are the start, no power law yet
_LEAST_NOISE = 2e-3  # a drafter's acceptance is never known better, however well few points fit
_MARGIN = 0.01  # of what lies between 1 and the longest
_GRID = 1001
_LEVELS = (0.025, 0.5, 0.975)


Array = NDArray[np.float64]


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
    density = sum(_density(scale, grid, steps, values, last_step) for scale in _scales(longest))
    below = np.cumsum(density)
    low, median, high = np.interp(_LEVELS, below / below[-1], grid)
    return Forecast(float(median), float(low), float(high))


@dataclass(frozen=True)
class _Scale:
    """What follows a power law: a growing function of the acceptance length, and its slope."""

    of: Callable[[Array], Array]
    slope: Callable[[Array], Array]


def _scales(longest: float) -> tuple[_Scale, _Scale]:
    margin = _MARGIN * (longest - 1)  # at the ends themselves log odds are infinite

    def inside(tau: Array) -> Array:
        return np.clip(tau, 1 + margin, longest - margin)

    def log_odds(tau: Array) -> Array:
        tau = inside(tau)
        return np.log((tau - 1) / (longest - tau))

    def slope(tau: Array) -> Array:
        tau = inside(tau)
        return 1 / (tau - 1) + 1 / (longest - tau)

    return _Scale(lambda tau: tau, np.ones_like), _Scale(log_odds, slope)


def _density(scale: _Scale, grid: Array, steps: Array, values: Array, last_step: int) -> Array:
    """Return the predictive density of the acceptance length over `grid`, summing up to 1.

    y = final - gain * u with u = 1 at the first point and 0 at the last step, so that the priors
    mean the same for every exponent, over which it is averaged.
    """
    freedom = len(steps) - 2
    noise = _LEAST_NOISE * scale.slope(values).mean()
    values = scale.of(values)
    powers = steps ** -_EXPONENTS[:, None]
    ends = float(last_step) ** -_EXPONENTS[:, None]
    u = (powers - ends) / (powers[:, :1] - ends)
    design = np.stack([np.ones_like(u), -u], axis=-1)
    inverse = np.linalg.inv(design.transpose(0, 2, 1) @ design)
    fitted = np.einsum("cij,cnj,n->ci", inverse, design, values)
    residuals = values - np.einsum("cni,ci->cn", design, fitted)
    squares = (residuals**2).sum(1) + freedom * noise**2
    log_weight = np.linalg.slogdet(inverse)[1] / 2 - freedom / 2 * np.log(squares)
    weight = np.exp(log_weight - log_weight.max())
    spread = np.sqrt(squares / freedom * (1 + inverse[:, 0, 0]))
    z = (scale.of(grid) - fitted[:, :1]) / spread[:, None]
    student = (1 + z**2 / freedom) ** (-(freedom + 1) / 2) / spread[:, None]
    density = weight @ student * scale.slope(grid)
    return density / density.sum()

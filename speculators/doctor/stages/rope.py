"""Rotary angles are the same on all sides."""

from collections.abc import Sequence

from speculators.doctor.causes import WRONG_ROPE
from speculators.doctor.finding import Stage
from speculators.doctor.stages.conventions import ConventionStage

_RELATIVE = 1e-5


def _show(angles: Sequence[float]) -> str:
    """Return the theta that plain rotary embedding would have with these angles."""
    if len(angles) < 2:
        return "nothing it computes"
    thetas = {round(angle ** (-len(angles) / i)) for i, angle in enumerate(angles) if i}
    low, high = min(thetas), max(thetas)
    if high - low <= 1e-3 * high:
        return f"theta {high}"
    return f"scaled angles {angles[0]:.3g} to {angles[-1]:.3g}"


def _same(a: Sequence[float], b: Sequence[float]) -> bool:
    near = all(abs(x - y) <= _RELATIVE * abs(y) for x, y in zip(a, b, strict=False))
    return len(a) == len(b) and near


check = ConventionStage(
    Stage("rope", "training, reader and engine turn by the same angles"),
    WRONG_ROPE,
    "transformer_layer_config.rope_parameters",
    lambda says: says.rope,
    _show,
    _same,
)

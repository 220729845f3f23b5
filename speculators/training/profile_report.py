"""What a watched step took, as a table and as `profile.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Profile:
    """Time and memory of a step.

    Attributes:
        seconds: by path of parts (`step/forward/mask`), mean over the timed steps.
        peak_bytes: by path, most that was alive during a part on top of what was there before.
        flops: of a step, by the algorithm's own count.
        peak_flops: of the device; None where it is not known.
        num_steps: how many were timed.
        device: where.
    """

    seconds: Mapping[str, float]
    peak_bytes: Mapping[str, int]
    flops: float
    peak_flops: float | None
    num_steps: int
    device: str

    @property
    def flops_per_second(self) -> float:
        """Arithmetic rate of the whole step, waiting included."""
        return self.flops / max(self.seconds["step"], 1e-9)

    @property
    def mfu(self) -> float | None:
        """Share of the device's peak."""
        return None if self.peak_flops is None else self.flops_per_second / self.peak_flops

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `profile.json`."""
        return {
            **vars(self),
            "seconds": dict(self.seconds),
            "peak_bytes": dict(self.peak_bytes),
            "flops_per_second": self.flops_per_second,
            "mfu": self.mfu,
        }


def profile_table(found: Profile) -> Table:
    """Return every part below the one it belongs to; `other` is what no part accounts for."""
    table = Table(
        title=f"one training step on {found.device}, mean of {found.num_steps}",
        title_justify="left",
    )
    for name in ("part", "ms", "share", "peak MiB"):
        table.add_column(name, justify="left" if name == "part" else "right")
    whole = found.seconds["step"]
    for path, seconds in _ordered(found.seconds, "step"):
        *above, name = path.split("/")
        peak = found.peak_bytes.get(path)
        table.add_row(
            "  " * len(above) + name,
            f"{1e3 * seconds:,.2f}",
            f"{seconds / whole:.1%}",
            "" if peak is None else f"{peak / 2**20:,.1f}",
        )
    return table


def summary(found: Profile) -> Iterator[str]:
    """Yield arithmetic and utilisation, a line each."""
    rate = found.flops_per_second / 1e12
    share = "the device's peak is not known" if found.mfu is None else f"MFU {found.mfu:.1%}"
    yield f"{found.flops / 1e12:.4g} TFLOP a step, {rate:.4g} TFLOP/s; {share}"


def _ordered(seconds: Mapping[str, float], path: str) -> Iterator[tuple[str, float]]:
    """Yield a part, what is below it with the largest first, and the rest of its time."""
    yield path, seconds[path]
    depth = path.count("/") + 1
    below = {p: s for p, s in seconds.items() if p.startswith(f"{path}/") and p.count("/") == depth}
    for child in sorted(below, key=lambda p: -below[p]):
        yield from _ordered(seconds, child)
    if below:
        yield f"{path}/other", max(0.0, seconds[path] - sum(below.values()))

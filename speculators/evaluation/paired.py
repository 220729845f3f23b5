"""Two evaluations of the same prompts: what differs, and whether that can be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speculators.errors import DataError
from speculators.evaluation.acceptance import RESAMPLES, Acceptance
from speculators.evaluation.slices import PromptRow, by_category, by_suite
from speculators.evaluation.speed import speed

PAIRED = (
    "difference of the acceptance lengths on the same prompts, second minus first; interval: 95 % "
    "bootstrap over prompts, each resample the same prompts for both"
)
"""Written beside every difference."""

_SAME = (
    "temperature",
    "sampling",
    "max_new_tokens",
    "verifier_revision",
    "template",
    "template_arguments",
)
"""Settings under which the same drafter would give another number."""


@dataclass(frozen=True)
class Evaluated:
    """One evaluation, read back.

    Attributes:
        name: what it is called in tables.
        values: `evaluation.json`.
        rows: its prompts.
        acceptance: of the prompts, in their order.
    """

    name: str
    values: Mapping[str, Any]
    rows: tuple[PromptRow, ...]
    acceptance: Acceptance

    @classmethod
    def read(cls, name: str, values: Mapping[str, Any]) -> Evaluated:
        """Understand what `evaluation.json` holds.

        Raises:
            DataError: it holds no numbers per prompt.
        """
        prompts = values.get("prompts")
        if not prompts:
            raise DataError(
                f"{name}: holds no numbers per prompt (evaluated only with several requests at "
                "once, or by an older version): evaluate again"
            )
        counts = ("drafts", "accepted_per_position")
        rows = tuple(
            PromptRow(**{k: v for k, v in prompt.items() if k not in counts}) for prompt in prompts
        )
        reached = np.array([prompt["accepted_per_position"] for prompt in prompts], np.int64)
        drafts = np.array([prompt["drafts"] for prompt in prompts], np.int64)
        at_risk = np.concatenate([drafts[:, None], reached[:, :-1]], axis=1)
        return cls(name, values, rows, Acceptance(reached, at_risk, drafts))

    def key(self, place: int) -> tuple[str | None, str, str]:
        """Return what makes a prompt the same one elsewhere."""
        row = self.rows[place]
        return row.suite, row.prompt_id, row.fingerprint

    def select(self, places: Sequence[int]) -> Evaluated:
        """Return some of the prompts, in the order of `places`."""
        rows = tuple(self.rows[place] for place in places)
        return Evaluated(self.name, self.values, rows, self.acceptance.select(places))


@dataclass(frozen=True)
class Difference:
    """How two evaluations of some prompts differ.

    Attributes:
        num_prompts: prompts both decoded.
        first: acceptance length of the first.
        second: of the second.
        difference: second minus first.
        interval: 95 % interval of the difference; None with fewer than two prompts.
    """

    num_prompts: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float] | None

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        ends = None if self.interval is None else list(self.interval)
        return {**asdict(self), "interval": ends, "significant": self.significant}


@dataclass(frozen=True)
class Comparison:
    """The second evaluation against the first.

    Attributes:
        first: the reference.
        second: what is compared with it.
        whole: over all prompts.
        parts: by suite or category.
    """

    first: Evaluated
    second: Evaluated
    whole: Difference
    parts: dict[str, Difference]

    def verdict(self) -> str:
        """Return in words whether the two differ."""
        found = self.whole
        if found.interval is None:
            return f"{found.num_prompts} prompt: too few to tell a difference from chance."
        low, high = found.interval
        spread = f"95 % interval {low:+.3f} to {high:+.3f}, {found.num_prompts} prompts"
        if not found.significant:
            return (
                f"No difference can be told: {self.second.name} {found.difference:+.3f} tokens per "
                f"verifier call ({spread}) holds zero."
            )
        more = "more" if found.difference > 0 else "fewer"
        return (
            f"{self.second.name} yields {more} tokens per verifier call than {self.first.name}: "
            f"{found.difference:+.3f} ({spread}); chance alone would seldom do that."
        )

    def speed(self) -> float | None:
        """Return tokens per second of the second over the first; None on other hardware."""
        keys = ("hardware", "device", "num_threads", "engine")
        one, other = self.first.values["settings"], self.second.values["settings"]
        if any(one.get(key) != other.get(key) for key in keys):
            return None
        first, second = speed(self.first.rows), speed(self.second.rows)
        return None if not first or second is None else second / first

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "first": self.first.name,
            "second": self.second.name,
            "all": self.whole.to_dict(),
            "verdict": self.verdict(),
            "parts": {name: part.to_dict() for name, part in self.parts.items()},
            "speed_ratio": self.speed(),
            "definition": self.first.values["definition"],
            "paired": PAIRED,
        }


def compare(first: Evaluated, second: Evaluated, *, seed: int = 0) -> Comparison:
    """Compare two evaluations, prompt by prompt.

    Args:
        first: the reference.
        second: the other.
        seed: of the resampling.

    Raises:
        DataError: other prompts, settings or definitions: the numbers would not mean the same.
    """
    _check_settings(first, second)
    second = second.select(_pairing(first, second))
    groups = by_suite(first.rows) if len(by_suite(first.rows)) > 1 else by_category(first.rows)
    return Comparison(
        first,
        second,
        _difference(first.acceptance, second.acceptance, seed),
        {
            name: _difference(first.acceptance.select(some), second.acceptance.select(some), seed)
            for name, some in groups.items()
        },
    )


def _check_settings(first: Evaluated, second: Evaluated) -> None:
    if first.values.get("definition") != second.values.get("definition"):
        raise DataError(
            f"compare: {first.name} and {second.name} define acceptance differently; evaluate both "
            "with the same version"
        )
    one, other = first.values["settings"], second.values["settings"]
    for key in _SAME:
        if one.get(key) != other.get(key):
            raise DataError(
                f"compare: {key} is {one.get(key)} in {first.name} and {other.get(key)} in "
                f"{second.name}: only evaluations under the same settings can be compared"
            )


def _pairing(first: Evaluated, second: Evaluated) -> list[int]:
    """Return where each prompt of the first stands in the second.

    Raises:
        DataError: they are not the same prompts.
    """
    there = {second.key(place): place for place in range(len(second.rows))}
    here = [first.key(place) for place in range(len(first.rows))]
    missing = [key for key in here if key not in there]
    if missing or len(here) != len(there):
        common = len(here) - len(missing)
        example = missing[0] if missing else next(key for key in there if key not in set(here))
        name = " ".join(part for part in example[:2] if part)
        raise DataError(
            f"compare: other prompts: {first.name} has {len(here)}, {second.name} {len(there)}, "
            f"{common} are the same; prompt {name} is not in both (same id and same tokens)"
        )
    return [there[key] for key in here]


def _difference(first: Acceptance, second: Acceptance, seed: int) -> Difference:
    count = first.num_prompts
    drawn = None
    if count > 1:
        generator = np.random.default_rng(seed)
        times = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
        low, high = np.percentile(_lengths(second, times) - _lengths(first, times), [2.5, 97.5])
        drawn = float(low), float(high)
    length = second.length - first.length
    return Difference(count, first.length, second.length, length, drawn)


def _lengths(acceptance: Acceptance, times: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the acceptance length of every resample of the prompts."""
    return 1 + (times @ acceptance.reached).sum(-1) / np.maximum(times @ acceptance.drafts, 1)

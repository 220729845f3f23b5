"""Who leads: runs that differ in their seed alone are one entry, and entries are ordered.

Everything here is a function of the records; nothing is read, written or drawn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speculators.config.identity import fingerprint
from speculators.config.schema import Objective
from speculators.errors import DataError
from speculators.sweep.records import Record, Status

SEED = "seed"


@dataclass(frozen=True)
class Spread:
    """Numbers that should be one number.

    Attributes:
        values: the numbers.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Their sample standard deviation; None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Entry:
    """Runs with the same settings but for the seed.

    Attributes:
        labels: what sets this entry apart: column -> value.
        by_seed: what finished runs are compared by.
        others: every other number: name -> spread over the runs that have it.
        num_runs: all runs, finished or not.
        behind: differences to the leading entry over the seeds both have; None of the leader, and
            where no seed is shared.
    """

    labels: dict[str, str]
    by_seed: dict[int, float]
    others: dict[str, Spread]
    num_runs: int
    behind: Spread | None = None

    @property
    def spread(self) -> Spread | None:
        """Over the seeds; None when no run has finished."""
        return Spread(tuple(self.by_seed.values())) if self.by_seed else None


@dataclass(frozen=True)
class Leaderboard:
    """The entries of a sweep, best first; those without a finished run last.

    Attributes:
        objective: name of the number they are ordered by.
        maximise: whether more of it is better.
        columns: what entries differ in.
        entries: the entries.
        unfinished: runs that failed, or did not come to an end.
    """

    objective: str
    maximise: bool
    columns: tuple[str, ...]
    entries: tuple[Entry, ...]
    unfinished: tuple[Record, ...]

    @property
    def has_numbers(self) -> bool:
        """Whether any run has the number the entries are ordered by."""
        return any(entry.by_seed for entry in self.entries)

    @property
    def num_finished(self) -> int:
        """Runs that came to their end."""
        return sum(entry.num_runs for entry in self.entries) - len(self.unfinished)


def rank(records: Sequence[Record], objective: Objective | None = None) -> Leaderboard:
    """Group runs over their seeds and order the groups.

    Args:
        records: of one sweep; at least one.
        objective: number to order by; None: what the runs were made for.

    Raises:
        DataError: the runs were made for different numbers.
    """
    objective = objective or _common_objective(records)
    maximise = objective.maximised(str(records[0].settings.get("training.best_metric")))
    name = objective.value
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_without_seed(record.settings), []).append(record)
    labels = _labels(list(groups.values()))
    entries = [
        _entry(label, group, name) for label, group in zip(labels, groups.values(), strict=True)
    ]
    order = sorted(entries, key=lambda entry: _place(entry, maximise))
    leader = order[0]
    order[1:] = [_against(leader, entry) for entry in order[1:]]
    return Leaderboard(
        name,
        maximise,
        tuple(labels[0]),
        tuple(order),
        tuple(record for record in records if record.status is not Status.finished),
    )


def _common_objective(records: Iterable[Record]) -> Objective:
    names = sorted({record.objective for record in records})
    if len(names) > 1:
        raise DataError(
            f"sweep.objective=null: the runs were made for {' and '.join(names)}: choose one"
        )
    return Objective(names[0])


def _without_seed(settings: Mapping[str, Any]) -> str:
    return fingerprint({key: value for key, value in settings.items() if key != SEED})


def _labels(groups: Sequence[Sequence[Record]]) -> list[dict[str, str]]:
    """Return what sets each group apart: overrides, and settings where those are equal."""
    overrides = [{k: v for k, v in group[0].overrides.items() if k != SEED} for group in groups]
    labels = _differing(overrides)
    if len({tuple(label.items()) for label in labels}) == len(groups):
        return labels
    settings = [{k: str(v) for k, v in group[0].settings.items() if k != SEED} for group in groups]
    taken = {key for override in overrides for key in override}
    return [
        {**label, **{key: value for key, value in more.items() if key not in taken}}
        for label, more in zip(labels, _differing(settings), strict=True)
    ]


def _differing(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    keys = dict.fromkeys(key for row in rows for key in row)
    varying = [key for key in keys if len({row.get(key) for row in rows}) > 1]
    return [{key: row.get(key, "-") for key in varying} for row in rows]


def _entry(labels: dict[str, str], group: Sequence[Record], name: str) -> Entry:
    finished = [record for record in group if record.status is Status.finished]
    by_seed = {
        int(record.settings.get(SEED) or 0): value
        for record in finished
        if (value := _number(record.values.get(name))) is not None
    }
    numbers: dict[str, list[float]] = {}
    for record in finished:
        for key, value in {**record.values, "seconds": record.seconds}.items():
            if key != name and (number := _number(value)) is not None:
                numbers.setdefault(key, []).append(number)
    others = {key: Spread(tuple(values)) for key, values in numbers.items()}
    return Entry(labels, dict(sorted(by_seed.items())), others, len(group))


def _place(entry: Entry, maximise: bool) -> tuple[bool, float]:
    spread = entry.spread
    mean = 0.0 if spread is None else spread.mean
    return spread is None, -mean if maximise else mean


def _against(leader: Entry, entry: Entry) -> Entry:
    shared = [seed for seed in entry.by_seed if seed in leader.by_seed]
    if not shared:
        return entry
    differences = tuple(entry.by_seed[seed] - leader.by_seed[seed] for seed in shared)
    return Entry(
        entry.labels, entry.by_seed, entry.others, entry.num_runs, behind=Spread(differences)
    )


def _number(value: Any) -> float | None:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None

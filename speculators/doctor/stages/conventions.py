"""Training, this project's reader and the engine take `config.json` to mean the same.

Every stage of this family looks at one part of what the three say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from speculators.algorithms.conventions import Conventions
from speculators.conversion.layout import algorithm_of
from speculators.doctor.causes import Cause
from speculators.doctor.finding import Finding, Stage
from speculators.doctor.subject import Subject
from speculators.errors import CheckpointError

Part = Callable[[Conventions], Any]
"""Picks what a stage compares."""


@dataclass(frozen=True)
class Side:
    """One of those who say what a drafter computes with.

    Attributes:
        name: who.
        says: what.
    """

    name: str
    says: Conventions


@dataclass(frozen=True)
class ConventionStage:
    """Compares one part of the conventions.

    Attributes:
        stage: name and purpose.
        cause: named where it differs.
        where: key of `config.json` it stands under.
        part: picks it.
        show: turns it into words.
        same: whether two are equal.
    """

    stage: Stage
    cause: Cause
    where: str
    part: Part
    show: Callable[[Any], str] = str
    same: Callable[[Any, Any], bool] = lambda a, b: a == b

    def __call__(self, subject: Subject) -> Finding:
        """Compare every side with the engine's."""
        try:
            sides = list(known_sides(subject))
        except CheckpointError as error:
            return self.stage.failed(self.cause, str(error))
        if len(sides) < 2:
            return self.stage.unchecked("the algorithm does not say what it computes with")
        engine, others = self.part(sides[-1].says), sides[:-1]
        for side in others:
            own = self.part(side.says)
            if not self.same(own, engine):
                taken, meant = _apart(engine, own)
                return self.stage.failed(
                    self.cause,
                    f"{self.stage.name}: {side.name} and engine differ",
                    where=f"{self.where} of config.json",
                    measured=f"the engine takes {self.show(taken)}",
                    allowed=f"{side.name}: {self.show(meant)}",
                )
        names = " and ".join(side.name for side in others)
        return self.stage.passed(
            f"{self.stage.name}: {names} and engine agree", measured=self.show(engine)
        )


def _apart(engine: Any, own: Any) -> tuple[Any, Any]:
    """Leave only what differs, of parts that hold several values."""
    if not isinstance(engine, dict) or not isinstance(own, dict):
        return engine, own
    keys = [k for k in engine | own if engine.get(k) != own.get(k)]
    return {k: engine.get(k) for k in keys}, {k: own.get(k) for k in keys}


def known_sides(subject: Subject) -> Iterator[Side]:
    """Yield who can say what the drafter computes with; the engine comes last.

    Raises:
        CheckpointError: the engine could not read the file.
    """
    live, drafter, recorded = subject.live, subject.drafter, subject.recorded
    trained = live.conventions() if live is not None else recorded and recorded.conventions
    if trained is not None:
        yield Side("training", trained)
    if drafter is not None and drafter is not live:
        read = drafter.conventions()
        if read is not None:
            yield Side("reader", read)
    served = None
    if subject.content is not None:
        config = subject.content.config
        served = algorithm_of(subject.content.folder, config).served_conventions(config)
    elif drafter is not None:  # nothing is written yet: what would be
        config = json.loads(json.dumps(drafter.serving_config()))
        served = type(drafter).served_conventions(config)
    if served is not None:
        yield Side("engine", served)

"""Training, this project's reader and the engine take `config.json` to mean the same.

Every stage of this family looks at one part of what the three say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from speculators.algorithms.conventions import Conventions
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
            if not self.same(self.part(side.says), engine):
                return self.stage.failed(
                    self.cause,
                    f"{self.stage.name}: {side.name} and engine differ",
                    where=f"{self.where} of config.json",
                    measured=f"the engine takes {self.show(engine)}",
                    allowed=f"{side.name}: {self.show(self.part(side.says))}",
                )
        names = " and ".join(side.name for side in others)
        return self.stage.passed(
            f"{self.stage.name}: {names} and engine agree", measured=self.show(engine)
        )


def known_sides(subject: Subject) -> Iterator[Side]:
    """Yield who can say what the drafter computes with; the engine comes last.

    Raises:
        CheckpointError: the engine could not read the file.
    """
    live, drafter, recorded = subject.live, subject.drafter, subject.recorded
    trained = live.conventions() if live is not None else recorded and recorded.conventions
    if trained is not None:
        yield Side("training", trained)
    if drafter is None:
        return
    if drafter is not live and (read := drafter.conventions()) is not None:
        yield Side("reader", read)
    if subject.content is not None:
        config = subject.content.config
    else:
        config = json.loads(json.dumps(drafter.serving_config()))
    served = type(drafter).served_conventions(config)
    if served is not None:
        yield Side("engine", served)

"""Commands that are printed for people to type."""

from __future__ import annotations

import shlex

import pytest

from speculators.config.composition import compose
from speculators.config.wording import argument


@pytest.mark.parametrize(
    "folder",
    ["/runs/best", "/my runs/a", "/runs/lr=1", "/runs/[1,3]", "/it's/here", "/costs $5/x", "/a,b"],
)
def test_a_printed_argument_can_be_typed(folder: str) -> None:
    (word,) = shlex.split(argument("checkpoint", folder))
    assert compose("evaluate", [word]).checkpoint == folder


def test_plain_values_are_not_quoted() -> None:
    assert argument("checkpoint", "/runs/2026-11-27_10-00-00/x.y") == (
        "checkpoint=/runs/2026-11-27_10-00-00/x.y"
    )
    assert argument("checkpoint", "/my runs/a") == "\"checkpoint='/my runs/a'\""

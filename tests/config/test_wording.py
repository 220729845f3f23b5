"""Commands that are printed for people to type."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from speculators.config.composition import compose
from speculators.config.wording import argument

ODD = [
    *("/runs/best", "/my runs/a", "/runs/lr=1", "/runs/[1,3]", "/it's/here", "/costs $5/x", "/a,b"),
    *("/läufe/a", "/日本/x", "~/states", "/runs/a\\", "/runs/a\\\\", "/a\\b", "/${seed}/x"),
    *("/\\${seed}/x", "/it\\'s", "/a{b}", "/a\nb", '/"a"!'),
]


@pytest.mark.parametrize("folder", ["/my runs/a", "/it's ${here}", "/läufe/a\\"])
def test_a_printed_argument_can_be_typed(folder: str) -> None:
    (word,) = shlex.split(argument("checkpoint", folder))
    assert compose("evaluate", [word]).checkpoint == folder


@pytest.mark.parametrize("text", ODD)
def test_odd_names_are_read_as_they_are(text: str) -> None:
    assert read(argument("key", text)) == text


@given(st.text("\\'\"${}a~ é", max_size=8))
def test_whatever_the_text_is(text: str) -> None:
    assert read(argument("key", text)) == text


def read(typed: str) -> str:
    """What Hydra makes of a typed argument."""
    (word,) = shlex.split(typed)
    value = OverridesParser.create().parse_override(word).value()
    return OmegaConf.create({"key": value})["key"]


def test_plain_values_are_not_quoted() -> None:
    assert argument("checkpoint", "/runs/2026-11-27_10-00-00/x.y") == (
        "checkpoint=/runs/2026-11-27_10-00-00/x.y"
    )
    assert argument("checkpoint", "/my runs/a") == "\"checkpoint='/my runs/a'\""

from __future__ import annotations

import pytest

from speculators.algorithms.dflash.model import DFlashDrafter
from speculators.algorithms.registry import drafter_class
from speculators.errors import ConfigError


def test_finds_the_drafter_of_an_algorithm() -> None:
    assert drafter_class("dflash") is DFlashDrafter


def test_unknown_algorithm_is_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^speculator=dflsh: no such algorithm; did you mean "):
        drafter_class("dflsh")

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing guards against power cuts, which no test makes; it is slow on a shared disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

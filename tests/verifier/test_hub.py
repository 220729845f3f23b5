"""What is said while the Hub does not answer."""

from __future__ import annotations

import logging

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from speculators.errors import ConfigError
from speculators.verifier import hub


def test_a_hub_out_of_reach_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = logging.getLogger("huggingface_hub.utils._http")

    def out_of_reach(*args: object, **options: object) -> str:
        for attempt in range(5):
            library.warning("Name or service not known")
            library.warning("Retrying in %d s", attempt)
        raise LocalEntryNotFoundError("no snapshot")

    monkeypatch.setattr(hub, "snapshot_download", out_of_reach)
    with pytest.raises(ConfigError, match="the Hub cannot be reached for revision main"):
        hub.locate("somebody/model")
    assert [record.getMessage() for record in caplog.records] == [
        "somebody/model: the Hub does not answer; asking again for half a minute"
    ]
    library.warning("heard again")
    assert caplog.records[-1].getMessage() == "heard again"

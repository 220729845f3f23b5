from __future__ import annotations

import pytest

from hidden_states.tables import make_sample
from speculators.data.types import Sample


@pytest.fixture
def samples() -> list[Sample]:
    return [
        make_sample(*range(start, start + length)) for start, length in ((1, 4), (9, 2), (5, 7))
    ]

"""The run-time checker of annotations in tests."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""Where a float is asked for an int will do, as the typing standard has it."""

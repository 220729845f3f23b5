"""Where conversations come from: one source, or one of several in a mixture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from speculators.config.schema.problem import Problem, at_least, positive


class DataFormat(Enum):
    """Layout of one row (auto: recognised by its keys, row by row)."""

    auto = "auto"
    sharegpt = "sharegpt"
    messages = "messages"
    prompt_response = "prompt_response"
    tokens = "tokens"


@dataclass
class SourceConfig:
    """Files of this machine, or a data set of the hub."""

    name: str | None = None
    """Short name; that of the preset."""
    path: Any = None
    """A file, folder or glob pattern, or a list of them: .jsonl, .json, .parquet, also with .gz;
    `tiny` is the set this package generates."""
    hub_id: str | None = None
    """Hub data set; null when `path` is given."""
    subset: str | None = None
    """Configuration name of the hub data set."""
    split: str = "train"
    """Split of the hub data set."""
    revision: str | None = None
    """Revision of the hub data set: branch, tag or commit. The commit found is recorded."""
    streaming: bool = False
    """Hub: read rows as they arrive and store none; `max_samples` then takes the first usable
    rows, and reading stops there."""
    licence: str | None = None
    """Licence of the conversations, recorded with the prepared data."""
    format: DataFormat = DataFormat.auto
    """Row layout."""
    max_samples: int | None = None
    """Use at most this many conversations, drawn by the seed before tokenising."""
    slice_by: str | None = None
    """Column whose value names the slice of a row (language, category) in reports."""
    ignore_columns: list[str] = field(default_factory=list)
    """Columns to leave aside, such as tool definitions that the system turn repeats."""
    remove: str | None = None
    """Regular expression; what matches is taken out of assistant turns."""

    def problems(self) -> Iterator[Problem]:
        """Check ranges, the pattern, and that path and hub id do not meet."""
        yield from at_least(self, "max_samples", 1)
        if self.path is not None and self.hub_id is not None:
            yield Problem("path", self.path, "given together with data.hub_id: keep one of them")
        if self.path is not None and not (_is_paths(self.path)):
            yield Problem("path", self.path, "must be a path or a list of paths")
        if self.streaming and self.hub_id is None:
            yield Problem("streaming", True, "is for hub data sets; files are always streamed")
        try:
            re.compile(self.remove or "")
        except re.error as error:
            yield Problem("remove", self.remove, f"not a regular expression: {error}")


@dataclass
class PartConfig(SourceConfig):
    """One source of a mixture."""

    weight: float | None = None
    """Share of the conversations relative to the other sources; null counts as 1. Without any
    weight every source is used up to its `max_samples`."""

    def problems(self) -> Iterator[Problem]:
        """Check the weight too, and that there is a source."""
        yield from super().problems()
        yield from positive(self, "weight")
        if self.path is None and self.hub_id is None:
            yield Problem("path", None, "no conversations: give a path or a hub_id")


def _is_paths(value: Any) -> bool:
    many = isinstance(value, list) and bool(value)
    return all(isinstance(item, str) and item for item in (value if many else [value]))

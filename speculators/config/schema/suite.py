"""One set of evaluation prompts: where it is published, and how a row becomes a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from speculators.config.schema.problem import Problem


@dataclass
class SuiteConfig:
    """Prompts of the hub, or a file of this machine in the same layout."""

    path: str | None = None
    """A file, folder or glob pattern with the published rows (.jsonl, .json, .parquet, also with
    .gz), used instead of the hub."""
    hub_id: str | None = None
    """Hub data set."""
    subset: str | None = None
    """Configuration name of the hub data set."""
    split: str = "test"
    """Split of the hub data set."""
    files: list[str] = field(default_factory=list)
    """JSON files of the hub data set to read instead of a split."""
    revision: str | None = None
    """Revision of the hub data set: branch, tag or commit. The commit found is recorded."""
    licence: str | None = None
    """Licence of the prompts; null: none is stated."""
    prompt: str | None = None
    """Jinja template of the user's text over a row's columns; null: `turns` (a list), or `prompt`,
    `question` or `problem`, as they are."""
    category: str | None = None
    """Jinja template of the category over a row's columns and `file`, the name of its file; null:
    the column `category`, if any."""

    def problems(self) -> Iterator[Problem]:
        """Check that there are prompts."""
        if self.path is None and self.hub_id is None:
            yield Problem("path", None, "no prompts: give a path or a hub_id")

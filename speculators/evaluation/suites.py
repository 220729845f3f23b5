"""Published prompt sets, from the hub or from a file in their layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from speculators.config.schema import SuiteConfig
from speculators.data.files import find_files, hash_files, read_rows
from speculators.data.hub import HubTable
from speculators.data.rows import RawRow, RowProblem
from speculators.errors import DataError
from speculators.evaluation.prompts import Prompt, parse_rows


@dataclass(frozen=True)
class Suite:
    """A prompt set as it was read.

    Attributes:
        name: short name.
        prompts: those that are used.
        num_published: all it holds.
        source: file or hub data set.
        revision: commit of the hub, or a hash of the files; None where the hub names none.
        licence: as its preset states it.
    """

    name: str
    prompts: tuple[Prompt, ...]
    num_published: int
    source: str
    revision: str | None
    licence: str | None

    def to_dict(self) -> dict[str, str | int | None]:
        """Return where the prompts come from, ready for JSON."""
        return {
            "source": self.source,
            "revision": self.revision,
            "licence": self.licence,
            "num_prompts": len(self.prompts),
            "num_published": self.num_published,
        }


def read_suites(configs: Mapping[str, SuiteConfig], num_prompts: int | None) -> list[Suite]:
    """Read several suites; of each, `num_prompts` that are spread evenly over it.

    Raises:
        DataError: one that cannot be had, holds no prompt, or has a row that is none (by place).
    """
    return [read_suite(name, config, num_prompts) for name, config in configs.items()]


def read_suite(name: str, config: SuiteConfig, num_prompts: int | None = None) -> Suite:
    """Read one suite, see `read_suites`."""
    key = f"evaluation.suites.{name}"
    tables = [] if config.path is not None else _tables(config, f"{key}.hub_id")
    files = [] if config.path is None else find_files(config.path, f"{key}.path")

    def rows() -> Iterator[RawRow | RowProblem]:
        for file in files:
            yield from read_rows(file)
        for table in tables:
            yield from table.rows()

    prompts = list(parse_rows(rows(), config, name))
    if not prompts:
        raise DataError(f"{key}: holds no prompt")
    commits = (table.commit() for table in tables)
    return Suite(
        name=name,
        prompts=tuple(_spread(prompts, num_prompts)),
        num_published=len(prompts),
        source=config.path or ", ".join(table.name for table in tables),
        revision=hash_files(files)[:16] if files else next(filter(None, commits), config.revision),
        licence=config.licence,
    )


def _tables(config: SuiteConfig, key: str) -> list[HubTable]:
    return [
        HubTable(
            *(str(config.hub_id), config.subset, config.split, config.revision),
            file=file,
            key=key,
        )
        for file in config.files or [None]
    ]


def _spread(prompts: list[Prompt], count: int | None) -> list[Prompt]:
    """Return `count` prompts at equal distances, in order."""
    if count is None or count >= len(prompts):
        return prompts
    return [prompts[(2 * i + 1) * len(prompts) // (2 * count)] for i in range(count)]

"""Where conversations come from: files, a hub data set, or the set this package generates.

A source is read twice, so that no set needs to fit into memory: once to validate every row and
choose which to use, once to tokenise. `fingerprint` says cheaply whether it is still the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from speculators.config.schema import DataConfig, SourceConfig
from speculators.data.files import find_files, hash_files, read_rows, spelled
from speculators.data.hub import HubSource
from speculators.data.parsing import RowParser
from speculators.data.rows import Origin, RawRow, Record, RowProblem, Severity
from speculators.data.tables import without_filling
from speculators.errors import DataError

TINY = "tiny"
"""`data.path` of the conversations this package generates."""
_TINY_COUNT = 3000


@runtime_checkable
class Source(Protocol):
    """Rows in a fixed order, readable any number of times."""

    @property
    def name(self) -> str:
        """How messages call it."""
        ...

    @property
    def takes_first(self) -> bool:
        """Whether a limit takes the first rows, and reading stops there."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything in it."""
        ...

    def rows(self) -> Iterator[Record | RowProblem]:
        """Yield every row: what it became, or why not."""
        ...


@dataclass(frozen=True)
class Part:
    """A source and how much of it to use.

    Attributes:
        source: where rows come from.
        limit: at most this many conversations.
        weight: share relative to the other parts of a mixture.
    """

    source: Source
    limit: int | None = None
    weight: float | None = None


class FileSource:
    """Files on this machine.

    Args:
        path: file, folder or glob pattern, or a list of them.
        parser: interprets their rows.
        key: dotted name of the setting, for messages.

    Raises:
        DataError: nothing readable is there.
    """

    takes_first = False

    def __init__(self, path: str | list[str], parser: RowParser, key: str = "data.path") -> None:
        paths = [path] if isinstance(path, str) else path
        found = [file for one in paths for file in find_files(one, key)]
        self._files, self._parser = list(dict.fromkeys(found)), parser
        self.name = ", ".join(paths)

    def fingerprint(self) -> str:
        """Hash of the files' names and contents."""
        return hash_files(self._files)

    def rows(self) -> Iterator[Record | RowProblem]:
        """Yield every row of every file, files sorted by name.

        Raises:
            DataError: a file without a single usable or bad row.
        """
        for file in self._files:
            yield from self._file_rows(file)

    def _file_rows(self, file: Path) -> Iterator[Record | RowProblem]:
        useful, unusable = 0, list[RowProblem]()
        for row in read_rows(file):
            result = (
                row if isinstance(row, RowProblem) else self._parser.parse(row, spelled(file.name))
            )
            if isinstance(result, RowProblem) and result.severity is Severity.unusable:
                unusable.append(result) if len(unusable) < 3 else None
            else:
                useful += 1
            yield result
        if useful:
            return
        if not unusable:
            raise DataError(f"{file}: no conversation in it, the file is empty")
        lines = "".join(f"\n  {problem}" for problem in unusable)
        raise DataError(f"{file}: no row with something to learn; the first:{lines}")


class SavedSource:
    """A data set that `datasets` saved to disk, for example one prepared by other tools.

    Args:
        path: folder with `state.json` and arrow files.
        parser: interprets its rows.
    """

    takes_first = False

    def __init__(self, path: str, parser: RowParser) -> None:
        self._folder, self._parser = Path(path).expanduser(), parser
        self.name = path

    def fingerprint(self) -> str:
        """Hash of the arrow files' names and contents."""
        return hash_files(sorted(self._folder.glob("*.arrow")))

    def rows(self) -> Iterator[Record | RowProblem]:
        """Yield every row; lines are row numbers from 1.

        Raises:
            DataError: the folder is damaged.
        """
        import datasets

        try:
            table: Any = datasets.load_from_disk(str(self._folder))
        except Exception as error:
            # Whatever a library raises over a damaged file, the remedy is the same.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"data.path={self.name}: damaged data set: {reason}") from error
        columns = table.features
        for number, value in enumerate(table, 1):
            row = RawRow(without_filling(value, columns), Origin(self.name, number))
            yield self._parser.parse(row, self._folder.name)


class TinySource:
    """The conversations this package generates.

    Args:
        count: how many.
        seed: what they are drawn by.
    """

    name = TINY
    takes_first = False

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed

    @cached_property
    def _conversations(self) -> list[Any]:
        from speculators.data.tiny import tiny_conversations

        return tiny_conversations(seed=self._seed, count=self._count)

    def fingerprint(self) -> str:
        """Hash of the conversations, so that another generator is another source."""
        digest = hashlib.sha256()
        for conversation in self._conversations:
            turns = [[t.role, t.content, dict(t.extra)] for t in conversation.turns]
            digest.update(json.dumps([conversation.conversation_id, turns]).encode())
        return digest.hexdigest()

    def rows(self) -> Iterator[Record | RowProblem]:
        """Yield the conversations."""
        for number, conversation in enumerate(self._conversations, 1):
            yield Record(conversation, Origin(TINY, number))


def open_source(
    config: SourceConfig, parser: RowParser, *, seed: int, key: str = "data.path"
) -> Source:
    """Return one source.

    Args:
        config: says where it is.
        parser: interprets its rows.
        seed: of the conversations this package generates.
        key: dotted name of its path, for messages.

    Raises:
        DataError: nothing readable is there.
    """
    if config.hub_id is not None:
        return HubSource(config, parser)
    if config.path == TINY:
        return TinySource(config.max_samples or _TINY_COUNT, seed)
    if config.path is None:
        raise DataError(f"{key}=null: no conversations: give a file, {key}=FILE.jsonl")
    if isinstance(config.path, str):
        folder = Path(config.path).expanduser()
        if (folder / "dataset_dict.json").exists():
            raise DataError(
                f"{key}={config.path}: holds several splits: name one, such as its train"
            )
        if (folder / "state.json").exists():
            return SavedSource(config.path, parser)
    return FileSource(config.path, parser, key)


def open_parts(config: DataConfig, *, vocab_size: int, seed: int) -> list[Part]:
    """Return the sources of the training conversations: one, or those of a mixture.

    Raises:
        DataError: nothing readable is there.
    """
    role = config.unknown_role
    if not config.sources:
        source = open_source(config, RowParser(config, vocab_size, role), seed=seed)
        return [Part(source, config.max_samples)]
    return [
        Part(
            open_source(
                part,
                RowParser(part, vocab_size, role),
                seed=seed,
                key=f"data.sources.{name}.path",
            ),
            part.max_samples,
            part.weight,
        )
        for name, part in config.sources.items()
    ]


def open_validation(config: DataConfig, *, vocab_size: int) -> Source | None:
    """Return the source of `data.validation_path`, if there is one.

    Raises:
        DataError: nothing readable is there.
    """
    if config.validation_path is None:
        return None
    plain = SourceConfig(format=config.format)
    parser = RowParser(plain, vocab_size, config.unknown_role)
    return FileSource(config.validation_path, parser, "data.validation_path")

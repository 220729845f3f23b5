"""Where conversations come from: files, a hub data set, or the set this package generates.

A source is read twice, so that no set needs to fit into memory: once to validate every row and
choose which to use, once to tokenise. `fingerprint` says cheaply whether it is still the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from speculators.config.schema import DataConfig
from speculators.data.files import find_files, hash_files, read_rows
from speculators.data.layouts import UNKNOWN_ROLE, parse_row
from speculators.data.rows import Origin, RawRow, Record, RowError, RowProblem, Severity
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

    def fingerprint(self) -> str:
        """Hash of everything in it."""
        ...

    def rows(self) -> Iterator[Record | RowProblem]:
        """Yield every row: what it became, or why not."""
        ...


class _Parsed:
    """Interprets rows by the settings of a `DataConfig`."""

    def __init__(self, config: DataConfig, vocab_size: int) -> None:
        self._config = config
        self._vocab_size = vocab_size

    def _parse(self, row: RawRow, source: str) -> Record | RowProblem:
        try:
            item = parse_row(
                row.value, source=source, vocab_size=self._vocab_size, layout=self._config.format
            )
        except RowError as error:
            problem = error.at(row.origin)
            if error.reason == UNKNOWN_ROLE and self._config.unknown_role.value == "drop":
                problem = dataclasses.replace(problem, severity=Severity.unusable)
            return problem
        return Record(item, row.origin)


class FileSource(_Parsed):
    """Files on this machine.

    Args:
        path: file, folder or glob pattern.
        config: layout and policies.
        vocab_size: embedding rows of the verifier.
        key: dotted name of the setting, for messages.

    Raises:
        DataError: nothing readable is there.
    """

    def __init__(
        self, path: str, config: DataConfig, vocab_size: int, key: str = "data.path"
    ) -> None:
        super().__init__(config, vocab_size)
        self._files = find_files(path, key)
        self.name = path

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
            result = row if isinstance(row, RowProblem) else self._parse(row, file.name)
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


class SavedSource(_Parsed):
    """A data set that `datasets` saved to disk, for example one prepared by other tools.

    Args:
        path: folder with `state.json` and arrow files.
        config: layout and policies.
        vocab_size: embedding rows of the verifier.
    """

    def __init__(self, path: str, config: DataConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self._folder = Path(path).expanduser()
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
            table = datasets.load_from_disk(str(self._folder))
        except Exception as error:
            # Whatever a library raises over a damaged file, the remedy is the same.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"data.path={self.name}: damaged data set: {reason}") from error
        for number, value in enumerate(table, 1):
            yield self._parse(RawRow(value, Origin(self.name, number)), self._folder.name)


class HubSource(_Parsed):
    """A data set of the Hugging Face hub (or a folder `datasets.load_dataset` understands).

    Args:
        config: `hub_id`, `hub_subset`, `hub_split`, `hub_revision`, layout and policies.
        vocab_size: embedding rows of the verifier.
    """

    def __init__(self, config: DataConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        subset = f":{config.hub_subset}" if config.hub_subset else ""
        self.name = f"{config.hub_id}{subset}:{config.hub_split}"

    @cached_property
    def _table(self) -> Any:
        import datasets

        config = self._config
        try:
            return datasets.load_dataset(
                str(config.hub_id),
                config.hub_subset,
                split=config.hub_split,
                revision=config.hub_revision,
            )
        except Exception as error:
            # The library raises its own, the hub client's and the network's kinds: for a user
            # they all mean that this data set cannot be had.
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"data.hub_id={self.name}: cannot be loaded: {reason[0]}") from error

    def fingerprint(self) -> str:
        """The data set's own fingerprint, which follows its revision and files."""
        return str(self._table._fingerprint)

    def rows(self) -> Iterator[Record | RowProblem]:
        """Yield every row; lines are row numbers from 1."""
        for number, value in enumerate(self._table, 1):
            yield self._parse(RawRow(value, Origin(self.name, number)), self.name)


class TinySource:
    """The conversations this package generates.

    Args:
        count: how many.
        seed: what they are drawn by.
    """

    name = TINY

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


def open_source(config: DataConfig, *, vocab_size: int, seed: int) -> Source:
    """Return the source of the training conversations.

    Raises:
        DataError: nothing readable is there.
    """
    if config.hub_id is not None:
        return HubSource(config, vocab_size)
    if config.path == TINY:
        return TinySource(config.max_samples or _TINY_COUNT, seed)
    if config.path is None:
        raise DataError("data.path=null: no conversations: give a file, data.path=FILE.jsonl")
    folder = Path(config.path).expanduser()
    if (folder / "dataset_dict.json").exists():
        raise DataError(
            f"data.path={config.path}: holds several splits: name one, such as its train"
        )
    if (folder / "state.json").exists():
        return SavedSource(config.path, config, vocab_size)
    return FileSource(config.path, config, vocab_size)


def open_validation(config: DataConfig, *, vocab_size: int) -> Source | None:
    """Return the source of `data.validation_path`, if there is one.

    Raises:
        DataError: nothing readable is there.
    """
    if config.validation_path is None:
        return None
    return FileSource(config.validation_path, config, vocab_size, "data.validation_path")

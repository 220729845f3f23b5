"""Data sets of the hub, through `datasets`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from speculators.config.schema import SourceConfig
from speculators.data.parsing import RowParser
from speculators.data.rows import Origin, RawRow, Record, RowProblem
from speculators.data.tables import without_filling
from speculators.errors import DataError

_COMMIT = re.compile(r"@([0-9a-f]{40})/")


@dataclass(frozen=True)
class HubTable:
    """Rows of a data set of the hub, or of a folder `datasets.load_dataset` understands.

    Attributes:
        hub_id: repository or folder.
        subset: name of the configuration; None: the only one.
        split: name of the split.
        revision: branch, tag or commit.
        streaming: read rows as they arrive and store none.
        file: one JSON file of the repository instead of a split.
        key: dotted name of the setting, for messages.
    """

    hub_id: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    file: str | None = None
    key: str = "data.hub_id"

    @property
    def name(self) -> str:
        """What reports call it."""
        if self.file is not None:
            return f"{self.hub_id}/{self.file}"
        subset = f":{self.subset}" if self.subset else ""
        return f"{self.hub_id}{subset}:{self.split}"

    @cached_property
    def _table(self) -> Any:
        import datasets

        return self._loaded(datasets.load_dataset, split=self._split)

    @property
    def _split(self) -> str:
        return "train" if self.file is not None else self.split

    def _loaded(self, load: Callable[..., Any], **more: Any) -> Any:
        try:
            if self.file is not None:
                return load("json", data_files=self._address(self.file), **more)
            return load(self.hub_id, self.subset, revision=self.revision, **more)
        except Exception as error:
            # The library raises its own, the hub client's and the network's kinds: for a user
            # they all mean that this data set cannot be had.
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"{self.key}={self.name}: cannot be loaded: {reason[0]}") from error

    def _address(self, file: str) -> str:
        if Path(self.hub_id).is_dir():
            return str(Path(self.hub_id) / file)
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://datasets/{self.hub_id}{revision}/{file}"

    @cached_property
    def _builder(self) -> Any:
        import datasets

        return self._loaded(datasets.load_dataset_builder)

    def fingerprint(self) -> str:
        """Hash that follows the data set's revision and files."""
        if not self.streaming:
            return str(self._table._fingerprint)
        # Without a stored table: the name under which it would be cached holds the same.
        files = str(getattr(self._builder.config, "data_files", ""))
        identity = [self.name, self._builder.cache_dir, files]
        return hashlib.sha256("\n".join(identity).encode()).hexdigest()

    def commit(self) -> str | None:
        """Return the revision's commit where the hub names one."""
        if self.streaming:
            files = [str(getattr(self._builder.config, "data_files", ""))]
        else:
            files = list(getattr(self._table.info, "download_checksums", None) or {})
        found = (_COMMIT.search(file) for file in files)
        return next((match.group(1) for match in found if match), None)

    def rows(self) -> Iterator[RawRow]:
        """Yield every row; lines are row numbers from 1.

        Raises:
            DataError: the data set cannot be had, or no longer.
        """
        for number, value in enumerate(self._values(), 1):
            yield RawRow(value, Origin(self.name, number))

    def _values(self) -> Iterator[Any]:
        if not self.streaming:
            columns = self._table.features
            yield from (without_filling(row, columns) for row in self._table)
            return
        import datasets

        stream = self._loaded(datasets.load_dataset, split=self._split, streaming=True)
        columns = stream.features or {}
        try:
            yield from (without_filling(row, columns) for row in stream)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"{self.key}={self.name}: reading stopped: {reason}") from error


class HubSource:
    """Conversations of a data set of the hub.

    Args:
        config: `hub_id`, `subset`, `split`, `revision`, `streaming`.
        parser: interprets its rows.
    """

    def __init__(self, config: SourceConfig, parser: RowParser) -> None:
        self._parser = parser
        self._table = HubTable(
            *(str(config.hub_id), config.subset, config.split, config.revision, config.streaming)
        )
        self.takes_first = config.streaming
        self.name = self._table.name

    def fingerprint(self) -> str:
        """Hash that follows the data set's revision and files."""
        return self._table.fingerprint()

    def commit(self) -> str | None:
        """Return the revision's commit where the hub names one."""
        return self._table.commit()

    def rows(self) -> Iterator[Record | RowProblem]:
        """Yield every row; lines are row numbers from 1.

        Raises:
            DataError: the data set cannot be had, or no longer.
        """
        for row in self._table.rows():
            yield self._parser.parse(row, self.name)

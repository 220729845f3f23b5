"""A data set of the Hugging Face hub as a source of rows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from speculators.config.schema import SourceConfig
from speculators.data.parsing import RowParser
from speculators.data.rows import Origin, RawRow, Record, RowProblem
from speculators.errors import DataError

_COMMIT = re.compile(r"@([0-9a-f]{40})/")


class HubSource:
    """A data set of the hub (or a folder `datasets.load_dataset` understands).

    Args:
        config: `hub_id`, `subset`, `split`, `revision`, `streaming`.
        parser: interprets its rows.
    """

    def __init__(self, config: SourceConfig, parser: RowParser) -> None:
        self._config, self._parser = config, parser
        self.takes_first = config.streaming
        subset = f":{config.subset}" if config.subset else ""
        self.name = f"{config.hub_id}{subset}:{config.split}"

    @cached_property
    def _table(self) -> Any:
        import datasets

        return self._loaded(datasets.load_dataset, split=self._config.split)

    def _loaded(self, load: Callable[..., Any], **more: Any) -> Any:
        config = self._config
        try:
            return load(str(config.hub_id), config.subset, revision=config.revision, **more)
        except Exception as error:
            # The library raises its own, the hub client's and the network's kinds: for a user
            # they all mean that this data set cannot be had.
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"data.hub_id={self.name}: cannot be loaded: {reason[0]}") from error

    @cached_property
    def _builder(self) -> Any:
        import datasets

        return self._loaded(datasets.load_dataset_builder)

    def fingerprint(self) -> str:
        """Hash that follows the data set's revision and files."""
        if not self._config.streaming:
            return str(self._table._fingerprint)
        # Without a stored table: the name under which it would be cached holds the same.
        files = str(getattr(self._builder.config, "data_files", ""))
        identity = [self.name, self._builder.cache_dir, files]
        return hashlib.sha256("\n".join(identity).encode()).hexdigest()

    def commit(self) -> str | None:
        """Return the revision's commit where the hub names one."""
        if self._config.streaming:
            files = [str(getattr(self._builder.config, "data_files", ""))]
        else:
            files = list(getattr(self._table.info, "download_checksums", None) or {})
        found = (_COMMIT.search(file) for file in files)
        return next((match.group(1) for match in found if match), None)

    def rows(self) -> Iterator[Record | RowProblem]:
        """Yield every row; lines are row numbers from 1.

        Raises:
            DataError: the data set cannot be had, or no longer.
        """
        for number, value in enumerate(self._values(), 1):
            yield self._parser.parse(RawRow(value, Origin(self.name, number)), self.name)

    def _values(self) -> Iterator[Any]:
        if not self._config.streaming:
            yield from self._table
            return
        import datasets

        stream = self._loaded(datasets.load_dataset, split=self._config.split, streaming=True)
        try:
            yield from stream
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"data.hub_id={self.name}: reading stopped: {reason}") from error

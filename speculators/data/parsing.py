"""A raw row -> a record, by the settings of its source."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from speculators.config.schema import SourceConfig
from speculators.config.schema.data import UnknownRole
from speculators.data.layouts import UNKNOWN_ROLE, parse_row
from speculators.data.rows import RawRow, Record, RowError, RowProblem, Severity, printable
from speculators.data.types import Conversation, Turn


class RowParser:
    """Interprets the rows of one source.

    Args:
        config: layout, columns to leave aside, slices, text to remove.
        vocab_size: embedding rows of the verifier.
        unknown_role: what becomes of a row with a role nobody knows.
    """

    def __init__(
        self,
        config: SourceConfig,
        vocab_size: int,
        unknown_role: UnknownRole = UnknownRole.error,
    ) -> None:
        self._config, self._vocab_size = config, vocab_size
        self._unknown_role = unknown_role
        self._remove = None if config.remove is None else re.compile(config.remove)

    def parse(self, row: RawRow, source: str) -> Record | RowProblem:
        """Return what a row becomes, or why it cannot be used.

        Args:
            row: as it was read.
            source: file or data set, for reports.
        """
        config, value = self._config, row.value
        if isinstance(value, Mapping):
            source = self._slice(value, source)
            if config.ignore_columns:
                value = {k: v for k, v in value.items() if k not in config.ignore_columns}
        try:
            item = parse_row(
                value, source=source, vocab_size=self._vocab_size, layout=config.format
            )
        except RowError as error:
            problem = error.at(row.origin)
            if error.reason == UNKNOWN_ROLE and self._unknown_role is UnknownRole.drop:
                problem = dataclasses.replace(problem, severity=Severity.unusable)
            return problem
        except RecursionError:
            return RowProblem(row.origin, "malformed JSON", "nested too deeply")
        if self._remove is not None and isinstance(item, Conversation):
            turns = tuple(map(self._without, item.turns))
            item = dataclasses.replace(item, turns=turns)
        return Record(item, row.origin)

    def _slice(self, row: Mapping[str, Any], source: str) -> str:
        column = self._config.slice_by
        if column is None:
            return source
        value = row.get(column)
        return f"{source}/{'none' if value is None else printable(value)}"

    def _without(self, turn: Turn) -> Turn:
        if turn.role != "assistant" or self._remove is None:
            return turn
        return dataclasses.replace(turn, content=self._remove.sub("", turn.content))

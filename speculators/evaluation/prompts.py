"""Evaluation prompts: what a row of a published prompt set asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from speculators.config.schema import SuiteConfig
from speculators.data.files import find_files, read_rows
from speculators.data.rows import RawRow, RowProblem
from speculators.data.types import Turn
from speculators.errors import DataError

_TEXT_KEYS = ("prompt", "question", "problem")
_ID_KEYS = ("question_id", "task_id", "unique_id", "prompt_id", "problem_idx", "id")


@dataclass(frozen=True)
class Prompt:
    """What a user says, turn by turn; the answers in between are the verifier's own.

    Attributes:
        turns: user texts, at least one.
        prompt_id: id in its file, else the line number.
        category: group for the table of acceptance, or None.
        source: `file:line` or the conversation it was taken from.
        system: system text ahead of the first turn, or None.
        input_ids: tokens of the first turn as they are, for prompts that were tokenised before.
        suite: name of the suite it belongs to, or None.
    """

    turns: tuple[str, ...]
    prompt_id: str
    category: str | None = None
    source: str = ""
    system: str | None = None
    input_ids: tuple[int, ...] | None = None
    suite: str | None = None

    def history(self, answers: Sequence[str]) -> list[Turn]:
        """Return the turns before the next answer, given the answers so far."""
        turns = [] if self.system is None else [Turn("system", self.system)]
        for text, answer in zip(self.turns, answers, strict=False):
            turns += [Turn("user", text), Turn("assistant", answer)]
        return [*turns, Turn("user", self.turns[len(answers)])]


def read_prompts(path: Path, limit: int | None = None) -> list[Prompt]:
    """Read a file of prompts.

    A row holds `turns` (a list of user texts, the MT-Bench layout), or one text or such a list
    under `prompt`, `question` or `problem`; `category` and an id are optional.

    Args:
        path: JSON Lines, JSON or parquet, also compressed.
        limit: use the first n prompts; None uses all.

    Raises:
        DataError: no such file, a row that cannot be read (`file:line`), or no row at all.
    """
    key = "evaluation.prompts"
    rows = (row for file in find_files(str(path), key) for row in read_rows(file))
    prompts: list[Prompt] = []
    for prompt in parse_rows(rows, SuiteConfig()):
        if limit is not None and len(prompts) == limit:
            break
        prompts.append(prompt)
    if not prompts:
        raise DataError(f"{key}={path}: holds no prompt; give one JSON object a line")
    return prompts


def parse_rows(
    rows: Iterable[RawRow | RowProblem], suite: SuiteConfig, name: str | None = None
) -> Iterator[Prompt]:
    """Yield the prompt of every row.

    Args:
        rows: as they were read.
        suite: says how a row becomes a prompt.
        name: of the suite.

    Raises:
        DataError: a row that cannot be read, by its place.
    """
    for row in rows:
        if isinstance(row, RowProblem):
            raise DataError(str(row))
        if not isinstance(row.value, Mapping):
            kind = type(row.value).__name__
            raise DataError(f"{row.origin}: a prompt is a JSON object, got {kind}")
        value, place = row.value, str(row.origin)
        ids = (value[key] for key in _ID_KEYS if value.get(key) is not None)
        yield Prompt(
            turns=_texts(value, place, suite.prompt),
            prompt_id=str(next(ids, row.origin.line)),
            category=_category(row, suite.category),
            source=place,
            suite=name,
        )


def _texts(row: Mapping[str, Any], place: str, template: str | None) -> tuple[str, ...]:
    if template is not None:
        turns = [_rendered(template, row, place, "prompt")]
    elif "turns" in row:
        turns = row["turns"]
        if not isinstance(turns, list) or not turns:
            raise DataError(f"{place}: turns must be a list of at least one user text")
    else:
        key = next((key for key in _TEXT_KEYS if key in row), None)
        if key is None:
            raise DataError(
                f"{place}: no prompt: give turns (a list of user texts) or prompt (one text); "
                f"got the keys {', '.join(map(str, row)) or 'none'}"
            )
        turns = row[key] if isinstance(row[key], list) and row[key] else [row[key]]
    for turn in turns:
        if not isinstance(turn, str) or not turn.strip():
            raise DataError(f"{place}: a user text must be a non-empty string, got {turn!r}")
    return tuple(turns)


def _category(row: RawRow, template: str | None) -> str | None:
    if template is not None:
        columns = {"file": Path(row.origin.file).stem, **row.value}
        return _rendered(template, columns, str(row.origin), "category") or None
    category = row.value.get("category")
    return None if category is None else str(category)


def _rendered(template: str, row: Mapping[str, Any], place: str, key: str) -> str:
    try:
        return _compiled(template).render(row)
    except TemplateError as error:
        have = ", ".join(map(str, row))
        raise DataError(
            f"{place}: the template of the suite's {key} cannot be filled in: {error.message}; "
            f"the row has {have}"
        ) from error


@lru_cache
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.from_string(template)

"""Evaluation prompts: files in the published layouts, or held-out conversations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speculators.data.types import Turn
from speculators.errors import DataError

_TEXT_KEYS = ("prompt", "question", "problem")
_ID_KEYS = ("question_id", "task_id", "unique_id", "id")


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
    """Read a JSON Lines file of prompts.

    A row holds `turns` (a list of user texts, the MT-Bench layout) or one text under `prompt`,
    `question` or `problem`; `category` and an id are optional.

    Args:
        path: the file.
        limit: use the first n prompts; None uses all.

    Raises:
        DataError: no such file, a row that cannot be read (`file:line`), or no row at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"evaluation.prompts={path}: cannot be read ({error})") from error
    prompts: list[Prompt] = []
    for number, line in enumerate(lines, start=1):
        if limit is not None and len(prompts) == limit:
            break
        if line.strip():
            prompts.append(_parse(line, f"{path}:{number}", str(number)))
    if not prompts:
        raise DataError(f"evaluation.prompts={path}: holds no prompt; give one JSON object a line")
    return prompts


def _parse(line: str, place: str, fallback_id: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: a prompt is a JSON object, got {type(row).__name__}")
    category = row.get("category")
    return Prompt(
        turns=_texts(row, place),
        prompt_id=str(next((row[key] for key in _ID_KEYS if key in row), fallback_id)),
        category=None if category is None else str(category),
        source=place,
    )


def _texts(row: Mapping[str, Any], place: str) -> tuple[str, ...]:
    if "turns" in row:
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
        turns = [row[key]]
    for turn in turns:
        if not isinstance(turn, str) or not turn.strip():
            raise DataError(f"{place}: a user text must be a non-empty string, got {turn!r}")
    return tuple(turns)

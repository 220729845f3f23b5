"""Training conversations that hold a prompt the drafter will be measured on.

A prompt is found where a conversation repeats thirteen of its words in a row (Brown et al. 2020,
arXiv:2005.14165, appendix C); a shorter prompt where a user turn says exactly its words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from speculators.config.schema import DataConfig
from speculators.data.files import find_files, hash_files, read_rows, spelled
from speculators.data.rows import RawRow, Record, TokenRow
from speculators.data.word_runs import run_hashes, words_of
from speculators.errors import DataError

RUN_WORDS = 13
KEY = "data.prompt_sets"
Spell: TypeAlias = Callable[[Any], str]
_TEXTS = ("turns", "prompt", "question", "problem", "instruction", "messages", "conversations")


class PromptSets:
    """The prompts of evaluation sets, to be looked for.

    Args:
        paths: files, folders or patterns in the layouts that evaluation reads.
        spell: text of tokens; rows that were tokenised before are searched for runs of words.

    Attributes:
        num_prompts: texts that are looked for.

    Raises:
        DataError: nothing is there, or a row holds no prompt (file and line).
    """

    def __init__(self, paths: Sequence[str], spell: Spell) -> None:
        self._spell = spell
        self._files = [file for path in paths for file in find_files(path, KEY)]
        self._runs: dict[int, str] = {}
        self._whole: dict[int, str] = {}
        self.num_prompts = 0
        for file in self._files:
            self._read(file)

    def _read(self, file: Path) -> None:
        for row in read_rows(file):
            if not isinstance(row, RawRow):
                raise DataError(f"{KEY}: {row}")
            texts = [t for t in prompt_texts(row.value) if t.strip()]
            if not texts:
                raise DataError(f"{KEY}: {row.origin}: no prompt (known: {', '.join(_TEXTS)})")
            for text in texts:
                self._add(text, spelled(file.name))

    def _add(self, text: str, name: str) -> None:
        self.num_prompts += 1
        words = words_of(text)
        known = self._whole if len(words) < RUN_WORDS else self._runs
        for run in run_hashes(words, RUN_WORDS).tolist():
            known.setdefault(run, name)

    def fingerprint(self) -> str:
        """Hash of the files' names and contents."""
        return hash_files(self._files)

    def found_in(self, record: Record) -> str | None:
        """Return the name of the prompt file a conversation repeats something of, or None."""
        item = record.item
        if isinstance(item, TokenRow):
            words = words_of(self._spell(item.input_ids))
            return None if len(words) < RUN_WORDS else self._found(words, self._runs)
        for turn in item.turns:
            words = words_of(turn.content)
            short = len(words) < RUN_WORDS
            if short and turn.role != "user":
                continue
            name = self._found(words, self._whole if short else self._runs)
            if name is not None:
                return name
        return None

    def _found(self, words: Sequence[str], known: Mapping[int, str]) -> str | None:
        hashes = run_hashes(words, RUN_WORDS).tolist()
        return next((known[run] for run in hashes if run in known), None)


def open_prompt_sets(config: DataConfig, spell: Spell) -> PromptSets | None:
    """Return the evaluation prompts of `data.prompt_sets`, if there are any.

    Args:
        config: names their files.
        spell: text of tokens.

    Raises:
        DataError: nothing is there, or a row holds no prompt.
    """
    paths = config.prompt_sets
    if not paths:
        return None
    return PromptSets([paths] if isinstance(paths, str) else paths, spell)


def prompt_texts(row: Any) -> Iterator[str]:
    """Yield the user's texts of a row of a prompt file."""
    if not isinstance(row, Mapping):
        return
    value = next((row[key] for key in _TEXTS if row.get(key)), None)
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping) and item.get("role", item.get("from")) in ("user", "human"):
            text = item.get("content", item.get("value"))
            if isinstance(text, str):
                yield text

"""Every answer the verifier gave, one JSON line each, written as soon as it is there.

`kill -9` at any point loses at most the answers under way; the next start goes on. The lines are
pre-tokenised rows as well: `data=jsonl data.path=FILE` trains on them as they are.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from speculators.data.dialogue import Answer, Question
from speculators.errors import DataError

ANSWERS = "answers.jsonl"
SETTINGS = "settings.json"


class AnswerLedger:
    """Answers in a folder of their own; one process at a time writes there.

    Args:
        folder: created when missing.
        identity: everything the answers depend on, for people who look into the folder.

    Raises:
        DataError: another process writes there, or a line cannot be read (`file:line`).
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.path = folder / ANSWERS
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(identity, indent=2, sort_keys=True, default=str)
        (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise DataError(
                f"{self.path}: another process is regenerating these answers: wait until it has "
                "finished, this command will then find them"
            ) from None
        try:
            self._places = self._read()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._places)

    def find(self, question: Question) -> Answer | None:
        """Return the answer to a question, if there is one."""
        place = self._places.get(question.key)
        if place is None:
            return None
        start, length = place
        row = json.loads(os.pread(self._file, length, start))
        size = len(question.prompt)
        if row["input_ids"][:size] != question.prompt:
            return None
        return Answer(row["input_ids"][size:], row["finish_reason"], row["engine"])

    def add(self, question: Question, answer: Answer, text: str) -> None:
        """Append an answer; nothing twice.

        Raises:
            DataError: the disk is full.
        """
        if question.key in self._places:
            return
        row = {
            "id": question.key,
            "conversation_id": question.conversation_id,
            "turn": question.turn,
            "input_ids": [*question.prompt, *answer.token_ids],
            "loss_mask": [0] * len(question.prompt) + [1] * len(answer.token_ids),
            "finish_reason": answer.finish_reason,
            "sampling": {
                "temperature": question.temperature,
                "seed": question.seed,
                "max_tokens": question.max_new_tokens,
            },
            "usage": {
                "prompt_tokens": len(question.prompt),
                "completion_tokens": len(answer.token_ids),
            },
            "engine": answer.engine,
            "text": text,
        }
        line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        start = os.fstat(self._file).st_size
        try:
            # Straight to the system: what a killed process wrote, the system keeps.
            if os.write(self._file, line) < len(line):
                os.ftruncate(self._file, start)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror}): free space and repeat this "
                "command, it goes on where it stopped"
            ) from error
        self._places[question.key] = (start, len(line))

    def close(self) -> None:
        """Let others write; twice does no harm."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _read(self) -> dict[str, tuple[int, int]]:
        """Return where each answer stands; half a line at the end is cut off."""
        places: dict[str, tuple[int, int]] = {}
        start = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    os.ftruncate(self._file, start)
                    break
                try:
                    places[json.loads(line)["id"]] = (start, len(line))
                except (ValueError, KeyError, TypeError):
                    raise DataError(
                        f"{self.path}:{number}: no answer: remove this line, it will be asked for "
                        "again"
                    ) from None
                start += len(line)
        return places

"""Answers that outlive the process that asked for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from speculators.data.dialogue import Answer, Question
from speculators.data.ledger import AnswerLedger
from speculators.errors import DataError


def question(number: int, *, name: str = "c", turn: int = 0) -> Question:
    return Question([1, 2, number], name, turn, 5, 0.7, 42)


ANSWER = Answer([7, 8], "stop", "vllm 0.32.0")


def test_answers_are_found_again_with_all_there_is_to_know(tmp_path: Path) -> None:
    ledger = AnswerLedger(tmp_path, {"verifier": "v"})
    ledger.add(question(3), ANSWER, "text")
    ledger.add(question(3), ANSWER, "text")
    ledger.close()
    (line,) = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "id": question(3).key,
        "conversation_id": "c",
        "turn": 0,
        "input_ids": [1, 2, 3, 7, 8],
        "loss_mask": [0, 0, 0, 1, 1],
        "finish_reason": "stop",
        "sampling": {"temperature": 0.7, "seed": 42, "max_tokens": 5},
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "engine": "vllm 0.32.0",
        "text": "text",
    }
    again = AnswerLedger(tmp_path, {"verifier": "v"})
    assert len(again) == 1
    assert again.find(question(3)) == ANSWER
    for other in (question(4), question(3, name="d"), question(3, turn=1)):
        assert again.find(other) is None
    again.close()


def test_half_a_line_is_cut_off(tmp_path: Path) -> None:
    ledger = AnswerLedger(tmp_path, {})
    ledger.add(question(3), ANSWER, "")
    ledger.add(question(4), ANSWER, "")
    ledger.close()
    path = tmp_path / "answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    ledger = AnswerLedger(tmp_path, {})
    assert ledger.find(question(3)) == ANSWER
    assert ledger.find(question(4)) is None
    ledger.add(question(4), ANSWER, "")
    ledger.close()
    assert path.read_bytes() == whole


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{"id": "a"}\n{"broken\n{"id": "b"}\n')
    with pytest.raises(DataError, match=r"answers\.jsonl:2: no answer: remove this line"):
        AnswerLedger(tmp_path, {})


def test_only_one_process_writes(tmp_path: Path) -> None:
    ledger = AnswerLedger(tmp_path, {})
    with pytest.raises(DataError, match="another process is regenerating"):
        AnswerLedger(tmp_path, {})
    ledger.close()
    AnswerLedger(tmp_path, {}).close()


WRITER = """
import sys
from pathlib import Path
from speculators.data.dialogue import Answer, Question
from speculators.data.ledger import AnswerLedger
ledger = AnswerLedger(Path(sys.argv[1]), {})
number = len(ledger)
while True:
    ledger.add(Question([1, 2, number], "c", 0, 5, 0.7, 42), Answer([7, 8], "stop", "e"), "")
    number += 1
    print(number, flush=True)
"""


def test_a_killed_writer_loses_nothing_it_has_written(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    seen = [int(child.stdout.readline()) for _ in range(50)][-1]
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    ledger = AnswerLedger(tmp_path, {})
    assert len(ledger) >= seen
    assert all(ledger.find(question(number)) for number in range(len(ledger)))
    ledger.close()


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").symlink_to("/dev/full")
    ledger = AnswerLedger.__new__(AnswerLedger)
    ledger.path, ledger._places = tmp_path / "answers.jsonl", {}
    ledger._file = os.open(ledger.path, os.O_RDWR)
    with pytest.raises(DataError, match=r"answers\.jsonl: cannot be written \(No space left"):
        ledger.add(question(3), ANSWER, "")
    assert ledger.find(question(3)) is None
    ledger.close()

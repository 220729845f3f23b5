"""Prompt files and held-out conversations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speculators.data.types import Turn
from speculators.errors import DataError
from speculators.evaluation.prompts import Prompt, read_prompts


def write(path: Path, *rows: object) -> Path:
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows),
        encoding="utf-8",
    )
    return path


def test_published_layouts(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        {"question_id": 81, "category": "writing", "turns": ["one", "two"]},
        "",
        {"task_id": "HumanEval/0", "prompt": "def f():\u2028 pass"},
        '{"question": "raw \u2028 separator"}',
        {"problem": "how much"},
    )
    first, second, third, fourth = read_prompts(path)
    assert first == Prompt(("one", "two"), "81", "writing", f"{path}:1")
    assert second.prompt_id == "HumanEval/0"
    assert second.category is None
    assert (third.prompt_id, third.source) == ("4", f"{path}:4")
    assert fourth.turns == ("how much",)
    assert len(read_prompts(path, limit=2)) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", "p.jsonl:2: malformed JSON"),
        ("[1]", "p.jsonl:2: a prompt is a JSON object, got list"),
        ({"text": "x"}, "p.jsonl:2: no prompt: give turns"),
        ({"turns": []}, "p.jsonl:2: turns must be a list"),
        ({"turns": "x"}, "p.jsonl:2: turns must be a list"),
        ({"turns": ["x", 3]}, "p.jsonl:2: a user text must be a non-empty string, got 3"),
        ({"prompt": "  "}, "p.jsonl:2: a user text must be a non-empty string"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "fine"}, row)
    with pytest.raises(DataError, match=r"^[^\n]*$") as raised:
        read_prompts(path)
    assert message in str(raised.value)


def test_missing_or_empty_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"evaluation\.prompts=.*none.jsonl: no such file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no prompt"):
        read_prompts(write(tmp_path / "p.jsonl", "", ""))


def test_history_alternates_user_and_answer() -> None:
    prompt = Prompt(("a", "b"), "1", system="s")
    assert prompt.history([]) == [Turn("system", "s"), Turn("user", "a")]
    later = [Turn("user", "a"), Turn("assistant", "x"), Turn("user", "b")]
    assert prompt.history(["x"])[1:] == later

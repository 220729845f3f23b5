from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from speculators.conversion.durable import new_folder, remove_stale, replace_link, replace_text
from speculators.errors import CheckpointError


def test_a_text_is_replaced_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace_text(path, "one\n")
    replace_text(path, "zwei ü\n")
    assert path.read_text(encoding="utf-8") == "zwei ü\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_text_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        replace_text(tmp_path / "nowhere" / "a.json", "text")
    assert str(error.value) == (
        f"{tmp_path}/nowhere/a.json: cannot be written: No such file or directory; nothing "
        "half-written was left, make room or choose another output_dir and start again"
    )


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "0"
    with new_folder(target) as folder:
        (folder / "a").write_text("a")
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text("b")
        assert not target.exists()
        assert folder.parent == target.parent
    assert (target / "sub" / "b").read_text() == "b"
    assert [p.name for p in target.parent.iterdir()] == ["0"]


def test_a_folder_that_was_not_finished_is_gone(tmp_path: Path) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "0") as folder:
            (folder / "a").write_text("a")
            raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_relative_and_replaced(tmp_path: Path) -> None:
    link = tmp_path / "best"
    replace_link(link, "0")  # a target that is not there yet does not matter
    replace_link(link, "1")
    replace_link(link, "1")
    assert os.readlink(link) == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_only_our_own_leftovers_of_the_dead_go(tmp_path: Path) -> None:
    dead = 2**22 + 1
    for name in (f"a.tmp-{dead}", f"b.tmp-{dead}", f"a.tmp-{os.getpid()}", "a"):
        (tmp_path / name).write_text("")
    (tmp_path / f"a.tmp-{os.getppid()}").mkdir()
    assert remove_stale(tmp_path, re.compile("a")) == sorted(
        [f"a.tmp-{dead}", f"a.tmp-{os.getpid()}"]
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["a", f"a.tmp-{os.getppid()}", f"b.tmp-{dead}"]
    )
    assert remove_stale(tmp_path / "nowhere", re.compile("a")) == []

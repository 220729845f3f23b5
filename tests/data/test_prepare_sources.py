"""Mixtures, moved files, prompt sets and the report, through the whole preparation."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.config.schema import PartConfig
from speculators.config.schema.data import BadRows, Duplicates
from speculators.data.prepared import PreparedData
from speculators.data.regenerate import RegenerationBar

WriteRows = Callable[..., Path]
Messages = Callable[..., dict[str, Any]]
Prepare = Callable[..., PreparedData]


def test_mixture_end_to_end(
    run: Prepare, write_rows: WriteRows, rows: list[Any], messages: Messages
) -> None:
    math = [messages(f"{i} + 1?", f"{i + 1}", id=f"m{i}") for i in range(20)]
    parts = {
        "chat": PartConfig(path=str(write_rows(rows, "chat.jsonl")), weight=1.0, licence="mit"),
        "math": PartConfig(path=str(write_rows(math, "math.jsonl")), weight=1.0),
    }
    data = run(None, sources=parts)
    assert {name: count.samples for name, count in data.report.sources.items()} == {
        "chat.jsonl": 20,
        "math.jsonl": 20,
    }
    assert list(data.report.licences.values()) == ["mit"]
    counts = data.counts_by_source()
    assert sorted(counts) == ["chat.jsonl", "math.jsonl"]
    assert torch.equal(counts["chat.jsonl"] + counts["math.jsonl"], data.token_counts)
    assert run(None, sources=parts).reused
    parts["math"].weight = 0.5
    other = run(None, sources=parts)
    assert not other.reused
    assert other.report.sources["math.jsonl"].samples == 20
    assert other.report.sources["chat.jsonl"].samples == 40


def test_files_may_move_and_copies_are_found(
    run: Prepare, write_rows: WriteRows, rows: list[Any], tmp_path: Path
) -> None:
    path = write_rows(rows)
    first = run(path)
    moved = tmp_path / "elsewhere" / path.name
    moved.parent.mkdir()
    shutil.copy(path, moved)
    assert run(moved).reused
    assert run([str(path)]).folder == first.folder
    assert run([str(path), str(moved)]).report.num_duplicates == 40
    once = run([str(path), str(moved)], duplicates=Duplicates.exact)
    assert (once.report.num_samples, once.report.dropped) == (40, {"duplicate": 40})


def test_samples_that_conversations_share_are_used_once(
    run: Prepare, write_rows: WriteRows, messages: Messages
) -> None:
    """A template that rewrites history gives conversations that begin alike the same first row."""
    path = write_rows([messages("hi", "hello", f"q{i}", f"a{i}", id=f"c{i}") for i in range(6)])
    other = [messages(f"question {i}", f"answer {i}", id=f"d{i}") for i in range(30)]
    path = write_rows([json.loads(line) for line in path.read_text().splitlines()] + other)
    kept = run(path, "qwen3").report
    assert (kept.num_samples, kept.num_duplicates, kept.num_groups) == (42, 5, 31)
    once = run(path, "qwen3", duplicates=Duplicates.exact)
    assert once.report.dropped == {"sample that was there before": 5}
    assert (once.report.num_samples, once.report.num_duplicates) == (37, 0)
    # They stay together although only one of them still has the row they share.
    assert (once.report.num_groups, once.report.largest_group) == (31, 7)


def test_conversations_with_the_same_first_exchange_validate_together(
    run: Prepare, write_rows: WriteRows, messages: Messages
) -> None:
    """Also where one row holds the whole conversation, so that no two rows are equal."""
    trees = [
        messages(f"root {tree}", f"reply {tree}", f"more {tree} {leaf}", f"end {leaf}")
        for tree in range(12)
        for leaf in range(3)
    ]
    data = run(write_rows(trees), validation_fraction=0.3, sequence_length=256)
    assert (data.report.num_samples, data.report.num_groups) == (36, 12)

    def roots(side: Any) -> set[tuple[int, ...]]:
        return {tuple(side[i].input_ids[:12].tolist()) for i in range(len(side))}

    assert not roots(data.train) & roots(data.validation)
    assert len(data.validation) % 3 == 0


def test_validation_file_keeps_the_rows_it_shares(
    run: Prepare, write_rows: WriteRows, rows: list[Any]
) -> None:
    other = write_rows(rows[:10], "held_out.jsonl")
    path = write_rows(rows)
    kept = run(path, validation_path=str(other))
    assert (len(kept.train), len(kept.validation)) == (30, 10)
    assert kept.report.dropped == {"also in data.validation_path: not trained on": 10}
    once = run(path, validation_path=str(other), duplicates=Duplicates.exact)
    assert (len(once.train), len(once.validation)) == (30, 10)
    assert once.report.dropped == {"duplicate": 10}


def test_prompt_sets_are_part_of_the_identity(
    run: Prepare, write_rows: WriteRows, rows: list[Any]
) -> None:
    path = write_rows(rows)
    prompts = write_rows([{"prompt": "Question 3"}], "prompts.jsonl")
    plain, checked = run(path), run(path, prompt_sets=[str(prompts)])
    assert plain.folder != checked.folder
    assert checked.report.dropped == {"holds a prompt of prompts.jsonl": 1}
    write_rows([{"prompt": "Question 4"}], "prompts.jsonl")
    assert not run(path, prompt_sets=str(prompts)).reused


def test_where_it_lies_is_one_folder_in_the_cache(
    run: Prepare, write_rows: WriteRows, rows: list[Any], tmp_path: Path
) -> None:
    """The name of a hub data set, or of a folder that stands in for one, is a path."""
    for name in ("ORG/SET-1.5", str(tmp_path / "elsewhere" / "set"), "../..", "x" * 300):
        folder = run(write_rows(rows), name=name).folder
        assert folder.parent == tmp_path / "cache" / "prepared"
    assert run(write_rows(rows), name="ORG/SET-1.5").folder.name.startswith("ORG_SET-1.5-")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("\u540d" * 200, "\u540d" * 10),
        ("ORG/SET", "ORG_SET-"),
        ("/data/" + "x" * 300, "x" * 80 + "-"),
        ("a" + "\u00fc" * 100, "\u00fc" * 40 + "-"),
        ("...", "data-"),
        ("\u2026", "data-"),
        ("--x", "x-"),
    ],
)
def test_folder_is_named_after_the_data_whatever_its_name(
    name: str, begins: str, run: Prepare, write_rows: WriteRows, rows: list[Any]
) -> None:
    folder = run(write_rows(rows[:8]), name=name).folder
    assert folder.name.startswith(begins)
    assert len(folder.name.encode()) <= 80 + 17


def test_a_prompt_set_whose_name_is_no_text(
    run: Prepare, write_rows: WriteRows, rows: list[Any], tmp_path: Path
) -> None:
    prompts = Path(os.fsdecode(bytes(tmp_path / "prompts") + b"\xff.jsonl"))
    prompts.write_text('{"prompt": "Question 3"}\n')
    data = run(write_rows(rows), prompt_sets=[str(prompts)])
    assert data.report.contaminated == {"prompts\ufffd.jsonl": 1}
    assert "prompts\ufffd.jsonl" in (data.folder / "report.html").read_text("utf-8")


def test_progress_is_shown_beside_what_is_printed(
    run: Prepare, write_rows: WriteRows, rows: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output holds what commands print, whatever it is piped into."""
    run(write_rows(rows), progress=True)
    with RegenerationBar(3) as bar:
        bar.watch(5, over=True)
    assert capsys.readouterr().out == ""


def test_report_files_hold_what_was_found(
    run: Prepare, write_rows: WriteRows, rows: list[Any]
) -> None:
    data = run(write_rows([*rows, "{"]), bad_rows=BadRows.drop)
    report = json.loads((data.folder / "report.json").read_text())
    assert report == json.loads(json.dumps(data.report.to_dict()))
    assert report["dropped"] == {"malformed JSON": 1}
    page = (data.folder / "report.html").read_text()
    for expected in ("malformed JSON", "rows.jsonl:41", "<mark>Answer ", "truncation=keep"):
        assert expected in page
    for foreign in ("http://", "https://", "<script", "@import", "url("):
        assert foreign not in page

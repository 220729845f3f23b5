"""Files as people have them: every bad row is counted, named, left out or refused; never more."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speculators.config.schema import DataConfig
from speculators.config.schema.data import BadRows, UnknownRole
from speculators.data.prepare import prepare
from speculators.data.prepared import PreparedData
from speculators.data.template import VerifierTokenizer
from speculators.data.validate import Listing, validate_rows
from speculators.errors import DataError

MakeTokenizer = Callable[..., VerifierTokenizer]


def row(*texts: Any, roles: tuple[str, ...] = ("user", "assistant"), **more: Any) -> bytes:
    turns = [{"role": roles[i % len(roles)], "content": text} for i, text in enumerate(texts)]
    return json.dumps({"messages": turns, **more}, ensure_ascii=False).encode()


GOOD = [row(f"Question {i}", f"Answer {i}.", id=f"g{i}") for i in range(8)]
ARRAY = b"[" + b",\n".join(GOOD[:6])
SHORT = b'{"input_ids": [5, 6, 7], "loss_mask": [0, 0, 1]}\n'  # one supervised token is too few


class Case:
    """A file content and what has to come of it.

    Args:
        content: the file.
        reason: how the report counts it; None if nothing is wrong.
        place: `line: detail` in messages.
        bad: whether it stops a preparation by default.
        usable: samples that are left when bad rows are dropped.
    """

    def __init__(
        self,
        content: bytes,
        reason: str | None,
        place: str = "",
        *,
        bad: bool = True,
        usable: int = 8,
        name: str = "rows.jsonl",
        template: str = "chatml",
    ) -> None:
        self.content, self.reason, self.place = content, reason, place
        self.bad, self.usable, self.name, self.template = bad, usable, name, template


def lines(*extra: bytes) -> bytes:
    return b"\n".join([*GOOD, *extra]) + b"\n"


USERS = ("user", "user", "assistant")
CASES = {
    "truncated line": Case(
        lines(GOOD[0][:-3]),
        "malformed JSON",
        "9: malformed JSON: Unterminated string at column 112",
    ),
    "truncated array": Case(
        ARRAY, "malformed JSON", "6: malformed JSON: the array", usable=6, name="rows.json"
    ),
    "array cut inside a row": Case(
        ARRAY + b',\n{"messages": [', "malformed JSON", "7: malformed", usable=6, name="rows.json"
    ),
    "byte order mark": Case(b"\xef\xbb\xbf" + lines(), None),
    "mixed layouts": Case(
        lines(
            json.dumps({"conversations": [{"from": "human", "value": "q"}]}).encode()[:-2]
            + b', {"from": "gpt", "value": "shared"}]}',
            json.dumps({"instruction": "i", "input": "x", "output": "alpaca"}).encode(),
            json.dumps({"input_ids": [3, 4, 5], "loss_mask": [0, 1, 1]}).encode(),
        ),
        None,
        usable=11,
    ),
    "null row": Case(lines(b"null"), "not an object", "9: not an object: the row is null"),
    "null turns": Case(lines(b'{"messages": null}'), "not a list of turns", "9: not a list of"),
    "null content": Case(
        lines(row("q", None)), "turn without content", "9: turn without content: turn 2: content"
    ),
    "null role": Case(
        lines(row("q", "a", roles=("user", None))),  # type: ignore[arg-type]
        "turn without a role",
        "9: turn without a role: turn 2: role is null",
    ),
    "empty answer": Case(
        lines(row("q", " \n")), "empty assistant turn", "9: empty assistant turn: turn 2", bad=False
    ),
    "empty question": Case(
        lines(row("", "a")), "empty user turn", "9: empty user turn: turn 1", bad=False
    ),
    "no turns": Case(lines(b'{"messages": []}'), "empty conversation", "9: empty", bad=False),
    "two user turns": Case(
        lines(row("q", "r", "a", roles=USERS)),
        "chat template: roles must alternate",
        "9: chat template: roles must alternate",
        bad=False,
        template="strict",
    ),
    "two user turns a template accepts": Case(
        lines(row("q", "r", "a", roles=USERS)), None, usable=9
    ),
    "unknown role": Case(
        lines(row("q", "a", roles=("user", "narrator"))), "unknown role", "9: unknown role: 'narra"
    ),
    "not UTF-8": Case(
        lines(GOOD[0][:30] + b"\xff" + GOOD[0][31:]), "not UTF-8", "9: not UTF-8: byte 31 of the"
    ),
    "not UTF-8 inside an array": Case(
        ARRAY + b',\n{"messages": "\xff"}]',
        "not UTF-8",
        "7: not UTF-8: ",
        usable=6,
        name="rows.json",
    ),
    "number as turns": Case(lines(b'{"messages": 3}'), "not a list of turns", "9: not a list of"),
    "history that is none": Case(
        lines(b'{"instruction": "q", "output": "a", "history": 3}'),
        "malformed history",
        "9: malformed history: history is a number",
    ),
    "half a surrogate pair": Case(
        lines(b'{"prompt": "q", "response": "half \\ud83d"}'),
        "not Unicode text: half of a surrogate pair",
        "9: not Unicode text",
        bad=False,
    ),
    "half a surrogate pair in an id": Case(
        lines(b'{"id": "\\ud83d", "prompt": "q", "response": "a"}'), None, usable=9
    ),
    "a number of 5,000 digits": Case(
        lines(b'{"id": ' + b"7" * 5000 + b', "prompt": "q", "response": "a"}'),
        "malformed JSON",
        "9: malformed JSON: a number with too many digits",
    ),
    "a number of 5,000 digits inside an array": Case(
        ARRAY + b",\n{" + b'"id": ' + b"7" * 5000 + b"}]",
        "malformed JSON",
        "7: malformed JSON: a number with too many digits; the rest",
        usable=6,
        name="rows.json",
    ),
    "brackets without end": Case(
        lines(b"[" * 100_000), "malformed JSON", "9: malformed JSON: nested too deeply"
    ),
    "brackets without end inside an array": Case(
        ARRAY + b",\n" + b"[" * 100_000,
        "malformed JSON",
        "7: malformed JSON: nested too deeply; the rest",
        usable=6,
        name="rows.json",
    ),
    "brackets without end in tools": Case(
        lines(row("q", "a", tools="[" * 100_000)),
        "malformed tools",
        "9: malformed tools: nested too deeply",
    ),
    "a call without a name": Case(
        lines(
            row("q", None).replace(b"null}", b'null, "tool_calls": [{"function": {"name": 3}}]}')
        ),
        "malformed tool call",
        "9: malformed tool call: a call names no function",
    ),
    "zero byte": Case(lines(b"\x00" * 40), "malformed JSON", "9: malformed JSON"),
}


@pytest.fixture
def run(tmp_path: Path, make_tokenizer: MakeTokenizer) -> Callable[..., PreparedData]:
    """Prepare a file with one of the templates."""

    def go(path: Path, template: str = "chatml", **settings: Any) -> PreparedData:
        return prepare(
            DataConfig(name="rows", path=str(path), **settings),
            make_tokenizer(template),
            vocab_size=400,
            sequence_length=256,
            validation_fraction=0.25,
            seed=0,
            cache_dir=tmp_path / "cache",
            progress=False,
        )

    return go


@pytest.fixture
def check(make_tokenizer: MakeTokenizer) -> Callable[..., tuple[Listing, list[str]]]:
    """Validate a file; return the listing and its lines."""

    def go(path: Path, template: str = "chatml", **settings: Any) -> tuple[Listing, list[str]]:
        named: list[str] = []
        listing = validate_rows(
            DataConfig(name="rows", path=str(path), **settings),
            make_tokenizer(template),
            vocab_size=400,
            sequence_length=256,
            validation_fraction=0.25,
            seed=0,
            emit=named.append,
        )
        return listing, named

    return go


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input_is_counted_and_named(
    case: Case, tmp_path: Path, run: Callable[..., PreparedData], check: Callable[..., Any]
) -> None:
    path = tmp_path / case.name
    path.write_bytes(case.content)
    if case.bad and case.reason is not None:
        with pytest.raises(DataError) as caught:
            run(path, case.template)
        assert f"{path}:{case.place}" in str(caught.value)
        assert not (tmp_path / "cache" / "prepared").exists() or not list(
            (tmp_path / "cache" / "prepared").iterdir()
        )
    data = run(path, case.template, bad_rows=BadRows.drop)
    expected = {} if case.reason is None else {case.reason: 1}
    assert data.report.dropped == expected
    assert data.report.num_samples == case.usable
    assert [line.startswith(f"{path}:{case.place}") for line in data.report.examples] == (
        [True] * len(expected)
    )
    listing, named = check(path, case.template)
    assert listing.dropped == expected
    assert listing.num_usable == case.usable
    if case.reason is not None:
        outcome = "stops the preparation" if case.bad else "left out"
        assert len(named) == 1
        assert named[0].startswith(f"{path}:{case.place}")
        assert named[0].endswith(f" -> {outcome}")
    assert listing.num_stops == int(case.bad and case.reason is not None)


def test_a_file_in_another_encoding_is_named_once(
    tmp_path: Path, check: Callable[..., Any]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines().decode().encode("utf-16"))
    listing, named = check(path)
    assert (listing.num_rows, listing.num_stops) == (1, 1)
    said = "not UTF-8: the file is UTF-16: save it as UTF-8 -> stops the preparation"
    assert named == [f"{path}:1: {said}"]


def test_names_of_any_bytes(tmp_path: Path, run: Callable[..., PreparedData]) -> None:
    """A file name that is no UTF-8, and a slice with half a surrogate pair."""
    path = Path(os.fsdecode(bytes(tmp_path / "rows") + b"\xff.jsonl"))
    path.write_bytes(lines(b'{"kind": "\\ud83d", "prompt": "q", "response": "a"}', b"{"))
    data = run(path, slice_by="kind", bad_rows=BadRows.drop)
    assert set(data.report.sources) == {"rows\ufffd.jsonl/none", "rows\ufffd.jsonl/?"}
    assert data.report.examples[0].startswith(f"{tmp_path}/rows\ufffd.jsonl:10: malformed JSON")


def test_turn_of_a_megabyte(tmp_path: Path, run: Callable[..., PreparedData]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(row("q", "word " * 210_000)))
    data = run(path)
    assert (data.report.num_samples, data.report.num_truncated) == (9, 1)
    assert data.report.num_lost_tokens > 200_000
    assert data.report.length_counts[-1] == 1


def test_folder_with_the_name_of_a_file(
    tmp_path: Path, run: Callable[..., PreparedData], check: Callable[..., Any]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.mkdir()
    for go in (run, check):
        with pytest.raises(DataError) as caught:
            go(path)
        assert str(caught.value).startswith(f"data.path={path}: the folder holds no conversations")
    (path / "inner.jsonl").write_bytes(lines())
    assert run(path).report.num_samples == 8
    # A pattern that meets a folder reads what is in it.
    assert run(Path(f"{tmp_path}/*.jsonl")).report.num_samples == 8


def test_validation_writes_nothing_and_says_what_becomes_of_rows(
    tmp_path: Path, check: Callable[..., Any]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(b"{", row("q", "a", roles=("user", "narrator")), row("q", "x " * 500)))
    before = sorted(tmp_path.rglob("*"))
    listing, named = check(path, bad_rows=BadRows.drop, unknown_role=UnknownRole.drop)
    assert sorted(tmp_path.rglob("*")) == before
    assert [line.rsplit(" -> ", 1)[1] for line in named[:2]] == ["left out", "left out"]
    assert named[2].startswith(f"{path}:11: ")
    assert ": cut to 256 tokens -> " in named[2]
    assert (listing.num_rows, listing.num_stops, listing.num_usable) == (11, 0, 9)
    assert check(path)[0].num_stops == 2


def test_unstable_answers_are_named_as_stopping(tmp_path: Path, check: Callable[..., Any]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines())
    listing, named = check(path, "thinking_prompt")
    assert (listing.num_stops, listing.num_usable) == (8, 0)
    assert named[0].startswith(f"{path}:1: unstable turn 2: the generation prompt's '<think>")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (lines()[: len(GOOD[0])], "1 distinct conversation(s) cannot be split"),
        (b'{"input_ids": [5, 6], "loss_mask": [1, 1]}\n' * 3, "3 of 3 samples are supervised from"),
        (
            b"\n".join(row("same?", "same.", f"q{i}", "a") for i in range(3)),
            "3 distinct conversation(s), which all begin alike, cannot be split",
        ),
        (
            b'{"input_ids": [5, 6, 7], "loss_mask": [0, 1, 1]}\n'
            b'{"input_ids": [5, 6, 7, 8, 9], "loss_mask": [0, 0, 0, 1, 1]}\n',
            "1 distinct conversation(s) cannot be split",
        ),
    ],
    ids=["one", "masks", "alike", "tokens"],
)
def test_validation_refuses_what_a_preparation_would(
    rows: bytes, said: str, tmp_path: Path, run: Callable[..., PreparedData], check: Any
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows)
    with pytest.raises(DataError) as caught:
        run(path)
    listing, named = check(path)
    assert (named, listing.refusal) == ([], str(caught.value))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("training", "held_out", "said"),
    [
        (lines(), lines(), "data.validation_path: every training row is in it as well"),
        (lines(), SHORT, "held_out.jsonl: no row is left to use; the first reasons:\n  "),
        (SHORT, lines(), "rows.jsonl: no row is left to use; the first reasons:\n  "),
    ],
    ids=["the same", "nothing held out", "nothing to train on"],
)
def test_validation_looks_at_each_side(
    training: bytes,
    held_out: bytes,
    said: str,
    tmp_path: Path,
    run: Callable[..., PreparedData],
    check: Any,
) -> None:
    path, other = tmp_path / "rows.jsonl", tmp_path / "held_out.jsonl"
    path.write_bytes(training)
    other.write_bytes(held_out)
    with pytest.raises(DataError) as caught:
        run(path, validation_path=str(other))
    listing, _ = check(path, validation_path=str(other))
    assert (listing.num_stops, listing.refusal) == (0, str(caught.value))
    assert said in str(caught.value)


def test_neither_file_nor_folder(tmp_path: Path, run: Callable[..., PreparedData]) -> None:
    path = tmp_path / "rows.jsonl"
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"rows\.jsonl: neither a file nor a folder"):
        run(path)

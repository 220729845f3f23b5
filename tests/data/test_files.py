from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from speculators.data.files import find_files, hash_files, read_rows
from speculators.data.rows import RawRow, RowProblem
from speculators.errors import DataError


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path) -> list[tuple[int, object]]:
    """Line and value of good rows, line and message of bad ones."""
    rows = []
    for row in read_rows(path):
        assert row.origin.file == str(path)
        value = row.value if isinstance(row, RawRow) else f"{row.reason}: {row.detail}"
        rows.append((row.origin.line, value))
    return rows


def test_json_lines_with_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": 1}\n\n  \n{"a": "\xc3\xa9"}')
    assert read(path) == [(1, {"a": 1}), (4, {"a": "é"})]


def test_bad_lines_are_named_and_the_next_ones_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": \n{"b": "\xff"}\n[1, 2]\n{"a": 2}\n')
    assert read(path) == [
        (1, {"a": 1}),
        (2, "malformed JSON: Expecting value at column 7"),
        (3, "not UTF-8: byte 8 of the line"),
        (4, [1, 2]),
        (5, {"a": 2}),
    ]


def test_array_gives_the_line_where_each_object_begins(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[\n  {"a": 1},\n  {\n    "a": "x\\n"\n  },\n {"a": 3}\n]\n')
    assert read(path) == [(2, {"a": 1}), (3, {"a": "x\n"}), (6, {"a": 3})]


def test_array_larger_than_a_block(tmp_path: Path) -> None:
    rows = [{"i": i, "text": "é" * (i % 5000)} for i in range(2000)]
    path = write(tmp_path / "a.json", json.dumps(rows, ensure_ascii=False, indent=1))
    assert path.stat().st_size > 3 << 20
    values = [row.value for row in read_rows(path) if isinstance(row, RawRow)]
    assert values == rows


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[\n{"a": 1},\n{"a": 2', 3, "malformed JSON: Expecting ',' delimiter at column 8"),
        ('[\n{"a": 1},\n', 3, "malformed JSON: the array is not closed: the file is cut short"),
        ('[\n{"a": 1},\n{"a" 2}]', 3, "malformed JSON: Expecting ':' delimiter at column 6"),
    ],
)
def test_array_that_is_cut_short_or_broken(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    rows = read(write(tmp_path / "a.json", text))
    assert rows[0] == (2, {"a": 1})
    assert rows[1][0] == line
    assert str(rows[1][1]).startswith(message)
    assert len(rows) == 2


def test_json_file_that_holds_lines_or_one_object(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.json", '{"a": 1}\n{"a": 2}\nbroken\n{"a": 3}\n')
    assert [line for line, _ in read(lines)] == [1, 2, 3, 4]
    pretty = write(tmp_path / "b.json", '{\n "a": 1\n}\n{\n "a": 2\n}\n')
    assert read(pretty) == [(1, {"a": 1}), (4, {"a": 2})]


def test_gzip_and_a_damaged_one(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"a": 1}\n' * 5000)
    assert len(read(write(tmp_path / "a.jsonl.gz", whole))) == 5000
    array = gzip.compress(b'[{"a": 1}, {"a": 2}]')
    assert len(read(write(tmp_path / "b.json.gz", array))) == 2
    last = list(read_rows(write(tmp_path / "c.jsonl.gz", whole[:40])))[-1]
    assert isinstance(last, RowProblem)
    assert last.reason == "damaged file"
    assert list(read_rows(write(tmp_path / "d.jsonl.gz", b"not gzip")))[-1].origin.line == 1


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"prompt": ["p", "q"], "response": ["r", "s"]}), path)
    assert read(path) == [
        (1, {"prompt": "p", "response": "r"}),
        (2, {"prompt": "q", "response": "s"}),
    ]
    assert read(write(tmp_path / "b.parquet", b"PAR1"))[0][0] == 1


def test_parquet_with_text_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    offsets = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xffc")])
    parquet.write_table(pa.table({"prompt": texts, "response": ["r"] * 3}), path)
    first, second, third = read_rows(path)
    assert isinstance(first, RawRow)
    assert isinstance(third, RawRow)
    assert third.value == {"prompt": "c", "response": "r"}
    assert str(second) == f"{path}:2: not UTF-8: invalid start byte"


def test_folder_glob_and_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json", "sub/c.jsonl.gz", ".hidden/d.jsonl", "notes.txt"):
        write(tmp_path / "data" / name, "{}")
    names = [file.name for file in find_files(str(tmp_path / "data"))]
    assert names == ["a.json", "b.jsonl", "c.jsonl.gz"]
    assert [file.name for file in find_files(str(tmp_path / "data" / "*.jsonl"))] == ["b.jsonl"]


def test_nothing_there(tmp_path: Path) -> None:
    path = tmp_path / "missing.jsonl"
    with pytest.raises(DataError, match=f"^data.path={path}: no such file or folder$"):
        find_files(str(path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder holds no conversations"):
        find_files(str(tmp_path / "empty"), "data.validation_path")
    with pytest.raises(DataError, match="unknown kind of file"):
        find_files(str(write(tmp_path / "a.txt", "x")))


def test_hash_follows_names_contents_and_order(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", "1"), write(tmp_path / "b.jsonl", "2")
    first = hash_files([a, b])
    assert hash_files([a, b]) == first
    assert hash_files([b, a]) != first
    write(a, "3")
    assert hash_files([a, b]) != first

"""Files -> parsed rows with file and line: JSON Lines, JSON arrays, parquet, folders, .gz.

Everything streams: a file is never held in memory as a whole. What cannot be parsed becomes a
`RowProblem`; only a path that does not exist, or holds no readable file, is an error here.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from speculators.data.malformed import MALFORMED, json_detail
from speculators.data.rows import Origin, RawRow, RowProblem
from speculators.data.tables import json_types, without_filling
from speculators.errors import DataError

SUFFIXES = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".ndjson.gz", ".parquet")
_BLOCK_BYTES = 1 << 20
_DAMAGED = (OSError, EOFError, zlib.error)


def find_files(path: str, key: str = "data.path") -> list[Path]:
    """Return the files a path stands for, sorted by name.

    Args:
        path: a file, a folder (searched with its sub-folders) or a glob pattern.
        key: dotted name of the setting, for messages.

    Raises:
        DataError: nothing is there, or nothing of a known kind.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        files = [file for file in sorted(root.rglob("*")) if _readable(file, root)]
        if not files:
            raise DataError(
                f"{key}={path}: the folder holds no conversations (looked for {_kinds()})"
            )
        return files
    if root.is_file():
        if not root.name.lower().endswith(SUFFIXES):
            raise DataError(f"{key}={path}: unknown kind of file (known: {_kinds()})")
        return [root]
    if root.exists():
        raise DataError(f"{key}={path}: neither a file nor a folder")
    matches = sorted(glob.glob(str(root), recursive=True))
    if not matches or str(root) in matches:
        raise DataError(f"{key}={path}: no such file or folder")
    return list(dict.fromkeys(file for match in matches for file in find_files(match, key)))


def _kinds() -> str:
    return ", ".join(f"*{suffix}" for suffix in SUFFIXES)


def _readable(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.is_file() and not hidden and file.name.lower().endswith(SUFFIXES)


def hash_files(files: list[Path]) -> str:
    """Return a sha256 over the names and contents of files, in order."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
        total.update(os.fsencode(file.name) + b"\0" + digest.digest())
    return total.hexdigest()


def spelled(path: Path | str) -> str:
    """Return a path or its name as text that can be printed, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "replace")


def read_rows(file: Path) -> Iterator[RawRow | RowProblem]:
    """Yield the rows of one file in order."""
    name = file.name.lower()
    if name.endswith(".parquet"):
        yield from _parquet_rows(file)
        return
    with _open(file) as stream:
        if name.removesuffix(".gz").endswith(".json") and not _is_json_lines(file):
            yield from _document_rows(stream, spelled(file))
        else:
            yield from _line_rows(stream, spelled(file))


def _open(file: Path) -> BufferedIOBase:
    if file.name.lower().endswith(".gz"):
        return gzip.GzipFile(file, "rb")
    return file.open("rb")


def _is_json_lines(file: Path) -> bool:
    """Whether the first line of a .json file is a whole object (JSON Lines by another name)."""
    try:
        with _open(file) as stream:
            first = stream.readline(64 * _BLOCK_BYTES).decode("utf-8-sig").strip()
        return isinstance(json.loads(first), dict)
    except (*MALFORMED, *_DAMAGED):
        return False


def _line_rows(stream: BufferedIOBase, file: str) -> Iterator[RawRow | RowProblem]:
    number = 0
    while True:
        number += 1
        origin = Origin(file, number)
        try:
            line = stream.readline()
        except _DAMAGED as error:
            yield RowProblem(origin, "damaged file", f"{error}; the rest is not read")
            return
        if not line:
            return
        if number == 1:
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                yield RowProblem(origin, "not UTF-8", "the file is UTF-16: save it as UTF-8")
                return
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.isspace():
            yield _parse_line(line, origin)


def _parse_line(line: bytes, origin: Origin) -> RawRow | RowProblem:
    try:
        return RawRow(json.loads(line.decode("utf-8").rstrip("\r\n")), origin)
    except UnicodeDecodeError as error:
        return RowProblem(origin, "not UTF-8", f"byte {error.start + 1} of the line")
    except MALFORMED as error:
        return RowProblem(origin, "malformed JSON", json_detail(error))


class _Text:
    """Decoded text of a stream with a cursor, topped up block by block."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._block = _BLOCK_BYTES
        self._broken: UnicodeDecodeError | None = None
        self.text, self.cursor, self.line, self.ended = "", 0, 1, False

    def more(self) -> None:
        """Drop what is behind the cursor and read on; blocks double, so retries stay linear."""
        if self._broken is not None:
            raise self._broken
        block = self._stream.read(self._block)
        self._block *= 2
        self.ended = not block
        try:
            new = self._decode(block, final=self.ended)
        except UnicodeDecodeError as error:
            # Rows in front of the bad byte are still to be read.
            self._broken, self.ended = error, False
            new = error.object[: error.start].decode("utf-8")
        self.text, self.cursor = self.text[self.cursor :] + new, 0

    def move_to(self, position: int) -> None:
        """Move the cursor forward, counting lines."""
        self.line += self.text.count("\n", self.cursor, position)
        self.cursor = position

    def skip(self, characters: str) -> str:
        """Skip any of `characters`; return the one after them, empty at the end."""
        while True:
            position = self.cursor
            while position < len(self.text) and self.text[position] in characters:
                position += 1
            self.move_to(position)
            if position < len(self.text):
                return self.text[position]
            if self.ended:
                return ""
            self.more()


def _document_rows(stream: BufferedIOBase, file: str) -> Iterator[RawRow | RowProblem]:
    """Rows of one JSON document: an array of objects, or objects one after another."""
    text = _Text(stream)
    decoder = json.JSONDecoder()
    try:
        array = text.skip(" \t\r\n") == "["
        if array:
            text.move_to(text.cursor + 1)
        while (following := text.skip(" \t\r\n,")) not in ("", "]"):
            try:
                value, end = decoder.raw_decode(text.text, text.cursor)
            except MALFORMED as error:
                line = text.line
                if isinstance(error, json.JSONDecodeError):
                    if not text.ended:
                        text.more()
                        continue
                    line += text.text.count("\n", text.cursor, error.pos)
                detail = f"{json_detail(error)}; the rest is not read"
                yield RowProblem(Origin(file, line), "malformed JSON", detail)
                return
            yield RawRow(value, Origin(file, text.line))
            text.move_to(end)
        if array and following != "]":
            problem = "the array is not closed: the file is cut short"
            yield RowProblem(Origin(file, text.line), "malformed JSON", problem)
    except UnicodeDecodeError as error:
        yield RowProblem(
            Origin(file, text.line), "not UTF-8", f"{error.reason}; the rest is not read"
        )
    except _DAMAGED as error:
        detail = f"{error}; the rest is not read"
        yield RowProblem(Origin(file, text.line), "damaged file", detail)


def _batch_rows(batch: Any, file: str, before: int) -> Iterator[RawRow | RowProblem]:
    """Yield the rows of a table, alone where one of them is no text.

    Args:
        batch: a pyarrow record batch.
        file: its file.
        before: rows in front of it.
    """
    try:
        values = batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            yield RowProblem(Origin(file, before + 1), "not UTF-8", error.reason)
            return
        for place in range(len(batch)):
            yield from _batch_rows(batch.slice(place, 1), file, before + place)
        return
    columns: Any = json_types(batch.schema)
    kinds = columns or dict.fromkeys(batch.schema.names)
    for number, value in enumerate(values, before + 1):
        place = Origin(file, number)
        try:
            row = columns.decode_example(value) if columns else value
        except MALFORMED as error:
            yield RowProblem(place, "malformed JSON", str(error))
            continue
        yield RawRow(without_filling(row, kinds), place)


def _parquet_rows(file: Path) -> Iterator[RawRow | RowProblem]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=512):
            yield from _batch_rows(batch, spelled(file), number)
            number += len(batch)
    except (pa.ArrowException, OSError) as error:
        detail = f"{str(error).splitlines()[0]}; the rest is not read"
        yield RowProblem(Origin(spelled(file), number + 1), "damaged file", detail)

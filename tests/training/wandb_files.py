"""Reads what wandb wrote offline: a log of records in blocks, each record a protocol buffer."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_HEADER, _BLOCK, _PREFIX = 7, 32768, 7
_FULL, _LAST = 1, 4


def payloads(path: Path) -> Iterator[bytes]:
    """Yield the records of a `.wandb` file, put together from their fragments."""
    content, place, parts = path.read_bytes(), _HEADER, b""
    assert content.startswith(b":W&B")
    while place + _PREFIX <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _PREFIX:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        if place + _PREFIX + length > len(content):
            return  # it is still being written
        parts += content[place + _PREFIX : place + _PREFIX + length]
        place += _PREFIX + length
        if kind in (_FULL, _LAST):
            yield parts
            parts = b""


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a `.wandb` file."""
    for payload in payloads(path):
        record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        record.ParseFromString(payload)
        yield record


def complete(path: Path) -> Path:
    """Wait for the last record: wandb's own process writes it a little after `finish`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(record.WhichOneof("record_type") == "exit" for record in records(path)):
            return path
        time.sleep(0.05)
    raise AssertionError(f"{path} has no end")


def items(entries: Any) -> dict[str, Any]:
    """Return key -> value of a history or configuration record."""
    return {".".join(e.nested_key) or e.key: json.loads(e.value_json) for e in entries}


def history(path: Path) -> list[dict[str, Any]]:
    """Return every logged row."""
    return [
        items(r.history.item) for r in records(path) if r.WhichOneof("record_type") == "history"
    ]


def configuration(path: Path) -> dict[str, Any]:
    """Return the configuration a run was opened with."""
    (run,) = [r.run for r in records(path) if r.WhichOneof("record_type") == "run"]
    return items(run.config.update)

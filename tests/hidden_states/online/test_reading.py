"""Files that lie about themselves; none may be read past its end or raise anything unexpected."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from speculators.errors import HiddenStateError
from speculators.hidden_states.online import reading
from speculators.hidden_states.online.failures import BadStatesError, NoFileError
from speculators.hidden_states.online.files import reap, wait_for_file
from speculators.hidden_states.online.reading import is_complete, open_regular, read_tensors

GOOD = save({"hidden_states": torch.ones(3, 2, 4), "token_ids": torch.arange(3)})


def read(path: Path) -> dict[str, torch.Tensor]:
    descriptor = open_regular(str(path))
    try:
        return read_tensors(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def with_header(header: object, data: bytes = b"\0" * 64) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_are_those_written(
    dtype: torch.dtype, mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAP_BYTES", 1 if mapped else 2**30)
    path = tmp_path / "x.safetensors"
    states = torch.randn(5, 3, 8).to(dtype)
    path.write_bytes(save({"hidden_states": states, "token_ids": torch.arange(5)}))
    tensors = read(path)
    path.unlink()
    assert torch.equal(tensors["hidden_states"], states)
    assert torch.equal(tensors["token_ids"], torch.arange(5))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "file of 0 bytes is cut off"),
        (b"\xff" * 20, "cut off or no safetensors file"),
        (GOOD[:-1], "cut off"),
        (with_header([1, 2]), "no readable safetensors header"),
        (with_header({"x": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}), "unreadable"),
        (with_header({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}), "contradicts"),
        (with_header({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}}), "contradic"),
        (with_header({"x": {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}}), "cut off"),
        (with_header({"x": 3}), "unreadable"),
    ],
)
def test_a_file_that_lies_is_bad_states(content: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadStatesError, match=text):
        read(path)


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255), keep=st.integers(0, 400))
def test_any_damage_gives_tensors_or_bad_states(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, keep: int
) -> None:
    content = bytearray(GOOD)
    content[position] = value
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content[:keep])
    descriptor = open_regular(str(path))
    try:
        tensors = read_tensors(descriptor, os.fstat(descriptor).st_size)
        assert all(tensor.sum() is not None for tensor in tensors.values())
    except BadStatesError:
        pass
    finally:
        is_complete(descriptor)
        os.close(descriptor)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_only_regular_files_are_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/etc/hostname")
    with pytest.raises(HiddenStateError, match="it was not read"):
        open_regular(str(path))


def test_a_released_lock_without_file_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors.lock").write_text("")
    with pytest.raises(NoFileError, match="let go of the lock"):
        asyncio.run(wait_for_file(str(tmp_path / "x.safetensors"), 60))
    assert list(tmp_path.iterdir()) == []


def test_what_never_comes_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoFileError, match=r"neither x\.safetensors nor its lock appeared"):
        asyncio.run(wait_for_file(str(tmp_path / "x.safetensors"), 0.01))
    with pytest.raises(NoFileError, match="does not exist here"):
        asyncio.run(wait_for_file(str(tmp_path / "no" / "x.safetensors"), 0.01))


def test_reaping_a_folder_that_is_not_there_is_nothing(tmp_path: Path) -> None:
    assert reap(tmp_path / "none", "cmpl-", 0) == 0

"""Reads a safetensors file of a server, trusting neither its length nor its header.

Large files are mapped, not copied: taking one with all checks costs less than a plain read. The
mapping stays valid after the file is removed; its memory is freed with the last tensor of it.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import stat
from typing import Any

import torch
from torch import Tensor

from speculators.errors import HiddenStateError
from speculators.hidden_states.online.failures import BadStatesError

MAP_BYTES = 2**20
"""Files of this size and more are mapped; reading a smaller one costs less than a mapping."""

OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC

_MAX_HEADER_BYTES = 2**20
_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I64": torch.int64,
}


def open_regular(path: str) -> int:
    """Open a file for reading; symbolic links, devices and pipes are refused.

    Raises:
        FileNotFoundError: there is none.
        HiddenStateError: it is no regular file, or may not be read.
    """
    try:
        descriptor = os.open(path, OPEN_FLAGS | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise HiddenStateError(_forbidden(path)) from error
    except OSError as error:
        why = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise HiddenStateError(f"{path}: {why}; it was not read") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise HiddenStateError(f"{path}: not a regular file; it was not read")
    return descriptor


def _forbidden(path: str) -> str:
    try:
        owner = f"user {os.stat(path).st_uid}"
    except OSError:
        owner = "another user"
    return (
        f"{path}: permission denied: it belongs to {owner} and this process runs as user "
        f"{os.getuid()}; vLLM writes files only its own user can read, so run server and trainer "
        "as the same user"
    )


def is_complete(descriptor: int) -> bool:
    """Return whether a file is as long as its header says."""
    try:
        size = os.fstat(descriptor).st_size
        header, start = _read_header(descriptor, size)
        return all(start + entry["data_offsets"][1] <= size for entry in header.values())
    except (BadStatesError, KeyError, TypeError, IndexError):
        return False


def read_tensors(descriptor: int, size: int) -> dict[str, Tensor]:
    """Return the tensors of an open file; of a large one, pages are read when they are touched.

    Raises:
        BadStatesError: not a complete safetensors file.
    """
    content: mmap.mmap | bytearray
    if size >= MAP_BYTES:
        header, start = _read_header(descriptor, size)
        content = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    else:
        content = bytearray(size)
        if os.preadv(descriptor, [content], 0) != size:
            raise BadStatesError(f"file of {size} bytes is cut off")
        header, start = _parse_header(content, size)
    return {name: _tensor(name, entry, content, start, size) for name, entry in header.items()}


def _read_header(descriptor: int, size: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    return _parse_header(os.pread(descriptor, 8 + min(length, _MAX_HEADER_BYTES), 0), size)


def _parse_header(content: bytes | bytearray, size: int) -> tuple[dict[str, Any], int]:
    """Return the entries of a safetensors header and where the data begins."""
    length = int.from_bytes(content[:8], "little")
    if size < 8 or not 0 < length <= min(size - 8, _MAX_HEADER_BYTES):
        raise BadStatesError(f"file of {size} bytes is cut off or no safetensors file")
    try:
        header = json.loads(content[8 : 8 + length])
        if not isinstance(header, dict):
            raise ValueError
        header.pop("__metadata__", None)
    except ValueError:
        raise BadStatesError("file has no readable safetensors header") from None
    return header, 8 + length


def _tensor(name: str, entry: Any, content: mmap.mmap | bytearray, start: int, size: int) -> Tensor:
    try:
        dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
        first, last = entry["data_offsets"]
        count = math.prod(shape)
        fits = (
            0 <= first <= last
            and last - first == count * dtype.itemsize
            and all(type(extent) is int and extent >= 0 for extent in shape)
        )
    except (KeyError, TypeError, ValueError):
        raise BadStatesError(f"tensor {name!r} has an unreadable header entry") from None
    if not fits:
        raise BadStatesError(f"tensor {name!r}: its size contradicts its shape {shape}")
    if start + last > size:
        raise BadStatesError(f"file is cut off: {size} bytes instead of {start + last}")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype, count=count, offset=start + first).view(shape)

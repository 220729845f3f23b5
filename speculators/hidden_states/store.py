"""Hidden states on disk: one safetensors file per sample, addressed by its tokens.

```
<store>/store.json                      what every file has in common
<store>/3f/3f0a...e1.safetensors        hidden_states [token, layer, hidden], token_ids [token]
<store>/quarantine/                     files that failed a check, and reasons.jsonl
<store>/.usage, .users, .readers/       bytes in use, and what living runs need next
```
A file is written under a temporary name beside its place, flushed, and renamed; whoever reads
sees a whole file or none (hidden-states specification, section 6). The folders are the index:
there is no second list that a crash could leave behind the files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from speculators.errors import HiddenStateError
from speculators.hidden_states.description import begin, flush, read_description, remove_stale
from speculators.hidden_states.float8 import FLOAT8, RESTORED, quantise, restore, scale_problem
from speculators.hidden_states.identity import ANY_DTYPE, StoreIdentity
from speculators.hidden_states.readers import TEMPORARY, ReaderLog, Readers
from speculators.hidden_states.types import HiddenStates, Tokens
from speculators.hidden_states.usage import StoreFullError, Usage, only_if_writable
from speculators.hidden_states.validation import NormBand, find_problem

_FEWEST_QUARANTINED = 20
_FEWEST_USUAL = 16
_HEADER_BYTES = 2048
_REMOVED_SHARE = 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class HiddenStateStore:
    """A folder of hidden states of one verifier.

    Several threads and processes may read and write one store. Use `open`.

    Attributes:
        path: its folder.
        identity: what it holds, as its store.json says.
        dtype: number format of what is read.
        num_read: samples looked up in this run.
        num_quarantined: files put aside in this run.
        num_removed: files removed in this run to make room.
    """

    def __init__(
        self,
        path: Path,
        identity: StoreIdentity,
        wanted: StoreIdentity,
        *,
        max_bytes: int | None = None,
        max_bad_fraction: float = 0.01,
        norm_band: float = 10.0,
    ) -> None:
        self.path = path
        self.identity = identity
        self.num_read = 0
        self.num_quarantined = self.num_removed = 0
        self._lock = threading.Lock()
        self._float8 = identity.dtype == FLOAT8
        self.dtype: torch.dtype = RESTORED if self._float8 else getattr(torch, identity.dtype)
        self._max_bytes, self._max_bad_fraction = max_bytes, max_bad_fraction
        self._usage: Usage | None = None
        with only_if_writable():  # a store that may only be read needs no count
            self._usage = Usage(path, max_bytes)
        self._readers = Readers(path)
        self._band = NormBand(identity.layer_ids, norm_band, fewest=_FEWEST_USUAL)
        self._header = identity.header()
        self._columns = [identity.layer_ids.index(i) for i in wanted.layer_ids]
        self._all_columns = len(self._columns) == len(identity.layer_ids)

    @classmethod
    def open(
        cls,
        path: str | Path,
        wanted: StoreIdentity,
        *,
        create: bool,
        max_bytes: int | None = None,
        max_bad_fraction: float = 0.01,
        norm_band: float = 10.0,
    ) -> HiddenStateStore:
        """Open a store, or begin one.

        Args:
            path: its folder.
            wanted: what the run needs. A store of more layers serves it too.
            create: begin a store where there is none.
            max_bytes: most it may hold; what living runs are done with makes room.
            max_bad_fraction: share of the samples read (and more than 20) that may fail.
            norm_band: how far a layer's norm may be from that of the samples read before.

        Raises:
            HiddenStateError: no store there, not a store, or one of another verifier, tokenizer,
                number format or layer set; every difference is named.
        """
        folder = Path(path).expanduser().absolute()
        description = folder / "store.json"
        if not description.is_file():
            if not create:
                raise HiddenStateError(
                    f"hidden_states.store_path={path}: no store there (no store.json); fill one "
                    "first with hidden_states.on_generate=cache, or check the path"
                )
            if wanted.dtype == ANY_DTYPE:
                raise ValueError("a new store needs a number format")
            begin(path, folder, wanted)
        identity = read_description(path, description)
        if differences := identity.differences(wanted):
            raise HiddenStateError(
                "\n".join(f"hidden_states.store_path={path}: {line}" for line in differences)
                + "\nuse another folder for this run, or the settings the store was filled with"
            )
        remove_stale(folder)
        return cls(
            *(folder, identity, wanted),
            max_bytes=max_bytes,
            max_bad_fraction=max_bad_fraction,
            norm_band=norm_band,
        )

    def close(self) -> None:
        """Let go of the folder."""
        usage, self._usage = self._usage, None
        if usage is not None:
            usage.close()

    @property
    def num_bytes(self) -> int:
        """What the store holds; 0 where it may only be read."""
        return 0 if self._usage is None else self._usage.num_bytes

    def reader(self, wanted: Collection[str] | None, *, gives_up: bool) -> ReaderLog | None:
        """Tell other runs what this one reads; None where the store may only be read.

        Args:
            wanted: ids that will be asked for; None: any.
            gives_up: whether a sample could be computed again.
        """
        with only_if_writable():
            return ReaderLog(self.path, wanted, gives_up=gives_up)
        return None

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """Extraction ids of the stored states; the last one is the teacher's."""
        return self.identity.layer_ids

    def path_of(self, sample_id: str) -> Path:
        """Return where the states of a sample stand, or would stand."""
        return self.path / sample_id[:2] / f"{sample_id}.safetensors"

    def __contains__(self, sample_id: str) -> bool:
        return self.path_of(sample_id).is_file()

    def sample_ids(self) -> Iterator[str]:
        """Yield what is stored, in no particular order; nothing is checked."""
        for path in self.path.glob("[0-9a-f][0-9a-f]/*.safetensors"):
            if not path.name.startswith(TEMPORARY):
                yield path.stem

    def get(self, sample: Tokens) -> HiddenStates | None:
        """Return the states of a sample, of the layers the run wants, on the CPU.

        A file that fails a check is put into quarantine and counts as missing.

        Raises:
            HiddenStateError: a file may not be read, or so many failed that the store cannot be
                trusted.
        """
        with self._lock:
            self.num_read += 1
        path = self.path_of(sample.sample_id)
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HiddenStateError(f"{path} cannot be read: {error}") from error
        except SafetensorError as error:
            return self._refuse(sample, f"not readable: {error}")
        names = {"hidden_states", "token_ids", *(["hidden_states_scale"] if self._float8 else [])}
        if tensors.keys() != names:
            return self._refuse(sample, f"holds tensors {sorted(tensors)}")
        problem = self._header_problem(header, sample)
        states = tensors["hidden_states"]
        if problem is None and self._float8:
            problem = scale_problem(states, tensors["hidden_states_scale"])
            states = states if problem else restore(states, tensors["hidden_states_scale"])
        problem = problem or self._find_problem(
            *(states, tensors["token_ids"], sample, self.dtype), self._band
        )
        if problem is not None:
            return self._refuse(sample, problem)
        return self._select(states)

    def put(self, sample: Tokens, states: HiddenStates) -> HiddenStates:
        """Store the states of a sample; an older file is replaced.

        Args:
            sample: its tokens and id.
            states: of all layers the store holds (`layer_ids`).

        Returns:
            The states of the layers the run wants, as `get` would return them.

        Raises:
            StoreFullError: no room, and nothing that everybody is done with.
            HiddenStateError: the states fail a check, or cannot be written.
        """
        stacked = torch.cat([states.aux, states.last[:, None]], dim=1).cpu().contiguous()
        tokens = sample.input_ids.to("cpu", torch.int64)
        dtype = stacked.dtype if self._float8 else self.dtype
        problem = self._find_problem(stacked, tokens, sample, dtype)
        tensors = {"hidden_states": stacked, "token_ids": tokens.contiguous()}
        if problem is None and self._float8:
            codes, scale = quantise(stacked)
            tensors |= {"hidden_states": codes, "hidden_states_scale": scale}
            stacked = restore(codes, scale)
            problem = self._find_problem(stacked, tokens, sample, self.dtype)
        if problem is not None:
            raise HiddenStateError(f"sample {sample.sample_id} is not stored: {problem}")
        digest = _token_sha256(tokens)
        if not digest.startswith(sample.sample_id):
            raise ValueError(f"sample id {sample.sample_id} is not the address of its tokens")
        created = datetime.now(UTC).isoformat(timespec="seconds")
        extra = {"num_tokens": str(len(tokens)), "token_sha256": digest, "created": created}
        self._write(self.path_of(sample.sample_id), tensors, {**self._header, **extra})
        return self._select(stacked)

    def as_stored(
        self, states: Float[Tensor, "token layer hidden"]
    ) -> Float[Tensor, "token layer hidden"]:
        """Return states as they would be read: the same whether there was room or not."""
        return restore(*quantise(states)) if self._float8 else states

    def _find_problem(
        self,
        states: Tensor,
        tokens: Tensor,
        sample: Tokens,
        dtype: torch.dtype,
        band: NormBand | None = None,
    ) -> str | None:
        return find_problem(
            states,
            tokens,
            expected_tokens=sample.input_ids,
            layer_ids=self.layer_ids,
            hidden_size=self.identity.hidden_size,
            dtype=dtype,
            band=band,
        )

    def _write(self, path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
        """Write aside, flush, rename; on a full disk once more after making room."""
        size = sum(tensor.nbytes for tensor in tensors.values()) + _HEADER_BYTES
        reserved = self._reserve(size)
        written = 0
        temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(exist_ok=True)
            try:
                save_file(tensors, temporary, metadata=header)
            except (OSError, SafetensorError) as error:
                if not (_is_full(error) and self.make_room(size)):
                    raise
                save_file(tensors, temporary, metadata=header)
            flush(temporary)
            before = _size(path)
            temporary.replace(path)
            written = _size(path) - before
        except (OSError, SafetensorError) as error:
            kind = StoreFullError if _is_full(error) else HiddenStateError
            raise kind(
                f"{path} cannot be written: {error}; free space or choose another "
                "hidden_states.store_path"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
            self._count(written - reserved)

    def _reserve(self, size: int) -> int:
        """Count a file before it is written; make room for it where there is a limit."""
        if self._usage is None:
            return 0
        with self._usage.locked():
            missing = self._usage.missing(size)
            # Some more at a time: looking for what can go takes longer than removing it.
            share = (self._max_bytes or 0) // _REMOVED_SHARE
            if missing and self._remove(max(missing, share)) < missing:
                raise StoreFullError(
                    f"hidden_states.max_bytes={self._max_bytes}: {self.path} holds "
                    f"{self.num_bytes} bytes that somebody still needs or nobody has used yet; "
                    "raise it, or train from this store: room is made behind the trainers"
                )
            self._usage.add(size)
        return size

    def make_room(self, size: int) -> bool:
        """Remove what every living run is done with, oldest first; return whether anything went."""
        if self._usage is None:
            return False
        with self._usage.locked():
            return self._remove(size) > 0

    def _remove(self, size: int) -> int:
        """Remove files of at least `size` bytes if there are as many; return how many went."""
        found = []
        for name in self._readers.done_with():
            path = self.path_of(name)
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, path, status.st_size))
        freed = 0
        for _, path, length in sorted(found):
            if freed >= size:
                break
            with suppress(FileNotFoundError):
                path.unlink()
                freed += length
                self.num_removed += 1
        if freed and self._usage is not None:
            self._usage.add(-freed)
        return freed

    def _count(self, size: int) -> None:
        if self._usage is not None:
            with self._usage.locked():
                self._usage.add(size)

    def quarantine(self, sample_id: str, reason: str) -> None:
        """Put a file aside with the reason; the sample counts as missing from now on.

        Raises:
            HiddenStateError: more than `max_bad_fraction` of the samples of this run (at least
                20) failed.
        """
        folder = self.path / "quarantine"
        folder.mkdir(exist_ok=True)
        path = self.path_of(sample_id)
        with suppress(FileNotFoundError):  # another process may have been quicker
            size = path.stat().st_size
            path.replace(folder / path.name)
            self._count(-size)
        line = {"id": sample_id, "reason": reason, "time": time.time()}
        with self._lock:
            self.num_quarantined += 1
            with (folder / "reasons.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        limit = max(_FEWEST_QUARANTINED, self._max_bad_fraction * self.num_read)
        if self.num_quarantined > limit:
            raise HiddenStateError(
                f"{self.num_quarantined} of {self.num_read} stored samples failed their checks "
                f"(more than hidden_states.fetch.max_bad_fraction={self._max_bad_fraction:g}), the "
                f"last one: {reason}; see {folder / 'reasons.jsonl'}, then fill the store again"
            )

    def _refuse(self, sample: Tokens, reason: str) -> None:
        self.quarantine(sample.sample_id, reason)

    def _header_problem(self, header: dict[str, str], sample: Tokens) -> str | None:
        for name, expected in self._header.items():
            if name not in ("engine", "verifier") and header.get(name) != expected:
                return f"header: {name} is {header.get(name)!r}, the store says {expected!r}"
        if header.get("num_tokens") != str(len(sample.input_ids)):
            return f"header: {header.get('num_tokens')} tokens, expected {len(sample.input_ids)}"
        return None

    def _select(self, stacked: Tensor) -> HiddenStates:
        chosen = stacked if self._all_columns else stacked[:, self._columns]
        return HiddenStates(aux=chosen[:, :-1], last=chosen[:, -1])


def _is_full(error: Exception) -> bool:
    """Return whether a disk or a user's share of it is full; safetensors hides the number."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(f"os error {code}" in str(error) for code in _FULL)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _token_sha256(tokens: Int[Tensor, "token"]) -> str:
    return hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()

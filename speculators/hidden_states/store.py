"""Hidden states on disk: one safetensors file per sample, addressed by its tokens.

```
<store>/store.json                      what every file has in common
<store>/3f/3f0a...e1.safetensors        hidden_states [token, layer, hidden], token_ids [token]
<store>/quarantine/                     files that failed a check, and reasons.jsonl
```
A file is written under a temporary name beside its place, flushed, and renamed; whoever reads
sees a whole file or none (hidden-states specification, section 6).
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from speculators.errors import HiddenStateError
from speculators.hidden_states.identity import ANY_DTYPE, StoreIdentity
from speculators.hidden_states.types import HiddenStates, Tokens
from speculators.hidden_states.validation import find_problem

_TEMPORARY = ".writing-"
_STALE_SECONDS = 3600
_MOST_QUARANTINED_SHARE = 0.01
_FEWEST_QUARANTINED = 20


class HiddenStateStore:
    """A folder of hidden states of one verifier.

    Several threads and processes may read and write one store. Use `open`.

    Attributes:
        path: its folder.
        identity: what it holds, as its store.json says.
        num_read: samples looked up in this run.
        num_quarantined: files put aside in this run.
    """

    def __init__(self, path: Path, identity: StoreIdentity, wanted: StoreIdentity) -> None:
        self.path = path
        self.identity = identity
        self.num_read = 0
        self.num_quarantined = 0
        self._lock = threading.Lock()
        self._dtype = getattr(torch, identity.dtype)
        self._header = identity.header()
        self._columns = [identity.layer_ids.index(i) for i in wanted.layer_ids]
        self._all_columns = len(self._columns) == len(identity.layer_ids)

    @classmethod
    def open(cls, path: str | Path, wanted: StoreIdentity, *, create: bool) -> HiddenStateStore:
        """Open a store, or begin one.

        Args:
            path: its folder.
            wanted: what the run needs. A store of more layers serves it too.
            create: begin a store where there is none.

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
            _begin(path, folder, wanted)
        identity = _read_description(path, description)
        if differences := identity.differences(wanted):
            raise HiddenStateError(
                "\n".join(f"hidden_states.store_path={path}: {line}" for line in differences)
                + "\nuse another folder for this run, or the settings the store was filled with"
            )
        _remove_stale(folder)
        return cls(folder, identity, wanted)

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
            if not path.name.startswith(_TEMPORARY):
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
                names = set(file.keys())
                if names != {"hidden_states", "token_ids"}:
                    return self._refuse(sample, f"holds tensors {sorted(names)}")
                states, tokens = file.get_tensor("hidden_states"), file.get_tensor("token_ids")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HiddenStateError(f"{path} cannot be read: {error}") from error
        except SafetensorError as error:
            return self._refuse(sample, f"not readable: {error}")
        problem = self._header_problem(header, sample) or find_problem(
            states,
            tokens,
            expected_tokens=sample.input_ids,
            layer_ids=self.layer_ids,
            hidden_size=self.identity.hidden_size,
            dtype=self._dtype,
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
            HiddenStateError: the states fail a check, or cannot be written.
        """
        stacked = torch.cat([states.aux, states.last[:, None]], dim=1).cpu().contiguous()
        tokens = sample.input_ids.to("cpu", torch.int64)
        problem = find_problem(
            stacked,
            tokens,
            expected_tokens=tokens,
            layer_ids=self.layer_ids,
            hidden_size=self.identity.hidden_size,
            dtype=self._dtype,
        )
        if problem is not None:
            raise HiddenStateError(f"sample {sample.sample_id} is not stored: {problem}")
        digest = _token_sha256(tokens)
        if not digest.startswith(sample.sample_id):
            raise ValueError(f"sample id {sample.sample_id} is not the address of its tokens")
        created = datetime.now(UTC).isoformat(timespec="seconds")
        extra = {"num_tokens": str(len(tokens)), "token_sha256": digest, "created": created}
        tensors = {"hidden_states": stacked, "token_ids": tokens.contiguous()}
        self._write(self.path_of(sample.sample_id), tensors, {**self._header, **extra})
        return self._select(stacked)

    def _write(self, path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
        temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(exist_ok=True)
            save_file(tensors, temporary, metadata=header)
            _flush(temporary)
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            raise HiddenStateError(
                f"{path} cannot be written: {error}; free space or choose another "
                "hidden_states.store_path"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def quarantine(self, sample_id: str, reason: str) -> None:
        """Put a file aside with the reason; the sample counts as missing from now on.

        Raises:
            HiddenStateError: more than 1 % of the samples of this run (at least 20) failed.
        """
        folder = self.path / "quarantine"
        folder.mkdir(exist_ok=True)
        path = self.path_of(sample_id)
        # Another process may have been quicker.
        if path.exists():
            path.replace(folder / path.name)
        line = {"id": sample_id, "reason": reason, "time": time.time()}
        with self._lock:
            self.num_quarantined += 1
            with (folder / "reasons.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        limit = max(_FEWEST_QUARANTINED, _MOST_QUARANTINED_SHARE * self.num_read)
        if self.num_quarantined > limit:
            raise HiddenStateError(
                f"{self.num_quarantined} of {self.num_read} stored samples failed their checks, "
                f"the last one: {reason}; see {folder / 'reasons.jsonl'}, then fill the store again"
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


def _begin(path: str | Path, folder: Path, identity: StoreIdentity) -> None:
    """Write store.json unless another process just did."""
    temporary = folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
    ours = (_TEMPORARY, "store.json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not all(entry.name.startswith(ours) for entry in folder.iterdir()):
            raise HiddenStateError(
                f"hidden_states.store_path={path}: the folder is not empty and is no store; give "
                "an empty or a new one"
            )
        temporary.write_text(json.dumps(identity.to_json(), indent=2) + "\n", encoding="utf-8")
        _flush(temporary)
        # Unlike a rename, a link never replaces what another process just began.
        with suppress(FileExistsError):
            os.link(temporary, folder / "store.json")
        temporary.unlink()
    except OSError as error:
        raise HiddenStateError(
            f"hidden_states.store_path={path}: no store can be made there: {error}"
        ) from error


def _read_description(path: str | Path, description: Path) -> StoreIdentity:
    try:
        return StoreIdentity.from_json(json.loads(description.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise HiddenStateError(
            f"hidden_states.store_path={path}: store.json cannot be used ({error}); it was written "
            "by another version or damaged: use another folder"
        ) from error


def _remove_stale(folder: Path) -> None:
    """Remove what writers that died left behind."""
    oldest = time.time() - _STALE_SECONDS
    for path in [*folder.glob(f"{_TEMPORARY}*"), *folder.glob(f"*/{_TEMPORARY}*")]:
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
        except FileNotFoundError:
            continue


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _token_sha256(tokens: Int[Tensor, "token"]) -> str:
    return hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()

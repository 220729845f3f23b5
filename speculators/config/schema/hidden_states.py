"""`hidden_states`: where the verifier's hidden states come from and where they are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from speculators.config.schema.problem import Problem, at_least, between, positive


class HiddenStatesMode(Enum):
    """Who computes the states."""

    embedded = "embedded"
    online = "online"
    offline = "offline"


class OnMissing(Enum):
    """What to do for a sample without stored states."""

    generate = "generate"
    skip = "skip"
    warn = "warn"
    error = "error"


class OnGenerate(Enum):
    """What to do with states after they were generated."""

    delete = "delete"
    cache = "cache"


class StoreDtype(Enum):
    """In which number format a new store keeps states."""

    same = "same"
    float8_e4m3fn = "float8_e4m3fn"


@dataclass
class FetchConfig:
    """How states are asked of servers, and what happens when asking goes wrong."""

    requests_per_endpoint: int = 32
    """Requests in flight at one server; the server's own limit is its --max-num-seqs."""
    prefetch_samples: int = 256
    """Samples fetched ahead of the trainer, those in flight included."""
    prefetch_bytes: int = 8 * 2**30
    """States held ahead of the trainer; the sample that is needed next is always fetched."""
    transfer_path: str | None = None
    """Folder through which servers hand over their files, as this process sees it; null: a folder
    of yours on the ram disk (/dev/shm) or, where that is too small, in the temporary directory."""
    path_map: dict[str, str] = field(default_factory=dict)
    """Folders as the server names them -> as this process sees them; for servers in containers."""
    request_timeout_seconds: float = 600.0
    """Longest wait for one answer, the server's queue included."""
    file_timeout_seconds: float = 120.0
    """Longest wait for the file after the answer."""
    retries: int = 3
    """Further attempts after an answer that failed (5xx, time-out, no file)."""
    bad_retries: int = 2
    """Further attempts after states that are wrong (other tokens, NaN, zeros, missing rows)."""
    backoff_seconds: float = 1.0
    """Pause before the second attempt at the same server; doubles each time, at most 60."""
    startup_timeout_seconds: float = 600.0
    """Longest wait for servers that are not up at the start."""
    outage_timeout_seconds: float = 1800.0
    """Longest pause while no server answers; then a checkpoint is saved and the run stops."""
    max_bad_fraction: float = 0.01
    """Stop when more than this share of the samples (and more than 20) had to be left out."""
    max_consecutive_bad: int = 20
    """Stop when this many samples in a row had to be left out."""
    norm_band: float = 10.0
    """Every layer's norm must stay within the running median divided and multiplied by this."""
    teacher_check_every: int = 64
    """Compare the teacher's next token with the server's on every n-th sample; 0: never."""
    min_teacher_agreement: float = 0.05
    """Stop when the teacher says a smaller share of the response tokens looked at; 0: never."""
    orphan_age_seconds: float = 600.0
    """Unlocked files of earlier requests older than this are removed at start and end."""
    handshake: bool = True
    """Prove model, layer ids and their order with probes before the first step."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        for name in ("requests_per_endpoint", "prefetch_samples", "prefetch_bytes"):
            yield from at_least(self, name, 1)
        yield from at_least(self, "max_consecutive_bad", 1)
        for name in ("retries", "bad_retries", "teacher_check_every", "orphan_age_seconds"):
            yield from at_least(self, name, 0)
        yield from at_least(self, "backoff_seconds", 0)
        for name in ("request", "file", "startup", "outage"):
            yield from positive(self, f"{name}_timeout_seconds")
        yield from between(self, "max_bad_fraction", 0, 1)
        yield from between(self, "min_teacher_agreement", 0, 1)
        if not self.norm_band > 1:
            yield Problem("norm_band", self.norm_band, "must be greater than 1")
        for server, here in self.path_map.items():
            if not (server.startswith("/") and here.startswith("/")):
                yield Problem("path_map", f"{server}: {here}", "both must be absolute folders")


@dataclass
class HiddenStatesConfig:
    """Source, store and policies (hidden-states specification, section 7)."""

    name: str = MISSING
    """Short name of the choice."""
    mode: HiddenStatesMode = MISSING
    """embedded: the verifier runs in this process; online: a vLLM server; offline: the store."""
    endpoints: list[str] = field(default_factory=list)
    """Base URLs of vLLM servers, for example http://localhost:8000/v1."""
    store_path: str | None = None
    """Folder of the store; null keeps nothing."""
    on_missing: OnMissing = OnMissing.generate
    """A sample without stored states: generate them, skip it, skip with a warning, or stop."""
    on_generate: OnGenerate = OnGenerate.delete
    """After generating: use once and forget, or keep in the store."""
    max_bytes: int | None = None
    """Most a store may hold; null: as much as the disk does. Room is made by removing what every
    run that reads the store is done with, oldest first; what they need next is never removed."""
    store_dtype: StoreDtype = StoreDtype.same
    """same: bit for bit as computed; float8_e4m3fn: half the space of bfloat16, with a scale for
    every token and layer. Its loss is measured in docs/performance.md."""
    batch_tokens: int = 1
    """Samples share a forward pass of an embedded verifier up to this many tokens. 1 runs each
    alone: its states then never depend on its company, to the last bit."""
    memory_bytes: int = 2**30
    """An embedded verifier's states kept in memory, so that later epochs need no forward pass."""
    fetch: FetchConfig = field(default_factory=FetchConfig)
    """Requests to servers."""

    def problems(self) -> Iterator[Problem]:
        """Check that the policies have what they need."""
        yield from at_least(self, "batch_tokens", 1)
        yield from at_least(self, "memory_bytes", 0)
        yield from at_least(self, "max_bytes", 1)
        if self.on_generate is OnGenerate.cache and self.store_path is None:
            yield Problem(
                "on_generate", "cache", "needs a folder: give hidden_states.store_path=DIR"
            )
        if self.mode is HiddenStatesMode.offline and self.store_path is None:
            yield Problem("store_path", None, "offline states need a store: give its folder")
        if (
            self.mode is HiddenStatesMode.offline
            and self.on_missing is OnMissing.generate
            and not self.endpoints
        ):
            yield Problem(
                "on_missing",
                "generate",
                "needs a server: give hidden_states.endpoints=[URL], or on_missing=error or skip",
            )
        if self.mode is HiddenStatesMode.online and not self.endpoints:
            yield Problem(
                "endpoints",
                [],
                "online states need a server: start one with `speculators serve` and give "
                "hidden_states.endpoints=[http://localhost:8000/v1]",
            )
        for url in self.endpoints:
            if not url.startswith(("http://", "https://")):
                yield Problem("endpoints", url, "must be a URL such as http://localhost:8000/v1")

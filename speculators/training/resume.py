"""May this run go on from that checkpoint? Compares settings and content, key by key."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from speculators.config.schema import Config, SpeculatorConfig
from speculators.errors import CheckpointError
from speculators.training.state import TrainerState

_IDENTITY = (
    "speculator.",
    "fingerprint.",
    "seed",
    "optimizer.name",
    "training.sequence_length",
    "rows_per_step",
    "training.validation_fraction",
    "training.validation_samples",
    "training.ema_decay",
)
_HARMLESS_PARTS = (
    "speculator.from_pretrained",
    "speculator.pretrained_verifier",
    "speculator.forecast_steps",
)
_SILENT = (
    "output_dir",
    "cache_dir",
    "checkpoint",
    "show",
    "tracker.",
    "evaluation.",
    "doctor.",
    "expected",
    "expected.",
    "training.compile",
    "training.profile_steps",
    "training.resume",
    "training.allow_changes",
    "training.checkpoint_in_background",
    "training.name",
)


@dataclass(frozen=True)
class Difference:
    """A key whose value is not what the checkpoint was trained with.

    Attributes:
        key: dotted key; content hashes stand under `fingerprint.`.
        saved: value in the checkpoint.
        now: value of this start.
    """

    key: str
    saved: Any
    now: Any

    @property
    def changes_the_run(self) -> bool:
        """Whether going on would mix two different runs."""
        return _under(self.key, _IDENTITY) and not _under(self.key, _HARMLESS_PARTS)

    def __str__(self) -> str:
        """Return `key: saved X, now Y`."""
        return f"{self.key}: saved {json.dumps(self.saved)}, now {json.dumps(self.now)}"


def settings_of(config: Config, speculator: SpeculatorConfig) -> dict[str, Any]:
    """Return every setting by dotted key, as plain JSON values.

    Args:
        config: the run's configuration.
        speculator: the drafter's settings with every null resolved; they replace the configured
            ones, so that a default that resolves otherwise is noticed.
    """
    return dict(_flatten("", {**_plain(config), "speculator": _plain(speculator)}))


def compare(
    state: TrainerState, settings: Mapping[str, Any], fingerprints: Mapping[str, str]
) -> list[Difference]:
    """Return what differs, by key; keys only one side knows are left out (other version).

    Args:
        state: of the checkpoint.
        settings: of this start, from `settings_of`.
        fingerprints: content hashes of this start.
    """
    return [
        Difference(key, saved[key], now[key])
        for saved, now in (
            (state.settings, settings),
            (_prefixed(state.fingerprints), _prefixed(fingerprints)),
        )
        for key in sorted(saved.keys() & now.keys())
        if saved[key] != now[key] and not _under(key, _SILENT)
    ]


def require_resumable(
    name: str, differences: Iterable[Difference], allow_changes: Iterable[str]
) -> list[str]:
    """Refuse to mix two runs; return the differences that are accepted, one line each.

    Args:
        name: the checkpoint, for the message.
        differences: from `compare`.
        allow_changes: dotted keys, or groups of them, that may differ all the same.

    Raises:
        CheckpointError: names every key that would change the run.
    """
    allowed = [form for key in allow_changes for form in (key, f"{key}.")]
    found = list(differences)
    refused = [d for d in found if d.changes_the_run and not _under(d.key, allowed)]
    if refused:
        raise CheckpointError(
            f"{name}: was trained with other settings; go back to the saved values, choose another "
            "output_dir, or list the keys in training.allow_changes\n"
            + "\n".join(f"  {difference}" for difference in refused)
        )
    return [str(difference) for difference in found]


def _under(key: str, prefixes: Iterable[str]) -> bool:
    return any(key.startswith(p) if p.endswith(".") else key == p for p in prefixes)


def _prefixed(fingerprints: Mapping[str, str]) -> dict[str, str]:
    return {f"fingerprint.{name}": value for name, value in fingerprints.items()}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _flatten(prefix: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flatten(f"{prefix}{key}.", item)
        else:
            yield f"{prefix}{key}", item

"""What makes two runs the same run: their resolved settings, without where and how they happen."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_ELSEWHERE = (
    "cache_dir",
    "convert",
    "data.num_workers",
    "device",
    "dry_run",
    "extract",
    "hidden_states.endpoints",
    "hidden_states.memory_bytes",
    "hidden_states.store_path",
    "hydra",
    "launcher.rendezvous",
    "launcher.stall_seconds",
    "launcher.timeout_seconds",
    "num_threads",
    "output_dir",
    "plan",
    "push_to_hub",
    "serve",
    "show",
    "speculator.forecast_steps",
    "sweep",
    "tracker",
    "training.allow_changes",
    "training.resume",
    "validate_only",
)
"""Keys, and groups of them, that decide where and how a run happens, not what it finds."""

_LONGEST_VALUE, _LONGEST_NAME = 40, 120


def result_settings(composed: DictConfig) -> dict[str, Any]:
    """Return every setting that a result depends on: dotted key -> plain value.

    Args:
        composed: a whole configuration, with or without Hydra's own node.
    """
    names = [str(name) for name in composed.keys() if name != "hydra"]  # noqa: SIM118 (missing)
    own = OmegaConf.masked_copy(composed, names)
    try:
        plain = OmegaConf.to_container(own, resolve=True, enum_to_str=True)
    except OmegaConfBaseException:  # a broken reference: who runs it will say so
        plain = OmegaConf.to_container(own, resolve=False, enum_to_str=True)
    assert isinstance(plain, dict)
    return {key: value for key, value in _flatten(plain) if matters(key)}


def matters(key: str) -> bool:
    """Whether a result depends on the setting `key`, a dotted key or a group."""
    return not any(key == part or key.startswith(f"{part}.") for part in _ELSEWHERE)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return a hash of settings: 16 hexadecimal digits."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_name(overrides: Sequence[str], settings: Mapping[str, Any]) -> str:
    """Return a folder name for a run: readable, and its own whatever else changes.

    Args:
        overrides: what the run differs in, `key=value`.
        settings: of the run, from `result_settings`.
    """
    parts = [f"{_short(key)}-{_word(value)}" for key, value in changes(overrides).items()]
    readable = "_".join(parts)[:_LONGEST_NAME].strip("-_.")
    return f"{readable or 'run'}_{fingerprint(settings)[:8]}"


def changes(overrides: Sequence[str]) -> dict[str, str]:
    """Return key -> value of the overrides that a result depends on, the last one of each key."""
    pairs = (text.lstrip("+~").partition("=") for text in overrides)
    return {key: value for key, _, value in pairs if matters(key)}


def _short(key: str) -> str:
    return _clean(key.split("@")[-1].split(".")[-1])


def _word(value: str) -> str:
    return _clean(value)[-_LONGEST_VALUE:].strip("-_.")


def _clean(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-_.")


def _flatten(value: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item

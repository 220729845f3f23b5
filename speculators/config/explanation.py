"""Says in one line what is wrong with one override, and what was probably meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from speculators.config.folder import group_choices
from speculators.config.loading import one_line
from speculators.config.wording import describe, did_you_mean, enum_names, field_hint, nearest

_PLUGINS = ("joblib", "submitit", "optuna")


def explain_syntax(text: str, error: Exception) -> str:
    """Explain an override that is not `key=value` in Hydra's grammar."""
    if "=" not in text and not text.startswith("~"):
        return f"{text}: not an override: write key=value"
    reason = str(error).splitlines()[0].rstrip(".")
    return f"{text}: cannot be read: {reason}: quote values with special characters"


def explain_choice(override: Override, options: Sequence[str]) -> str | None:
    """Explain a choice that a group does not offer; None when it does, or drops the group.

    Args:
        override: a group override with one value.
        options: what the group offers.
    """
    value, group = override.value(), override.key_or_group
    if override.is_delete():
        return None
    if value is None:
        return f"{override.input_line}: to choose nothing write ~{group}"
    chosen = value if isinstance(value, list) else [value]
    unknown = [str(name) for name in chosen if str(name) not in options]
    if not unknown:
        return None
    hint = did_you_mean(unknown[0], options)
    extra = next((name for name in _PLUGINS if unknown[0].startswith(name)), None)
    if group.startswith("hydra/") and extra:
        hint = f" install hydra-speculators[{extra}]."
    return f"{override.input_line}: no such choice:{hint} {group} offers {', '.join(options)}"


def explain_sweep(override: Override) -> str:
    """Explain several values where one run was asked for."""
    key, _, values = (override.input_line or "").partition("=")
    return f"{key}={values}: for a list write {key}=[{values}], for several runs add --multirun"


def explain_key(override: Override, config: DictConfig) -> str | None:
    """Explain a key that does not exist; None when it does, or may be added.

    Hydra lets `+key=value` add keys that nothing would ever read; here only mappings take new keys.

    Args:
        override: a value override.
        config: what it is to be applied to.
    """
    text, key = override.input_line or "", override.key_or_group
    path, node, missing = _descend(key, config)
    if not missing:
        return None
    if not isinstance(node, DictConfig):
        group, _, name = path.rpartition(".")
        if node is None and name in group_choices().get(group, ()):
            return f"{text}: {path} is not chosen: add {group}={name}"
        return f"{text}: {path} holds a value, it has no keys"
    if _is_mapping(node):
        if override.is_add() or override.is_force_add():
            return None
        return f"{text}: no such key: to add it write +{text}"
    names = [str(name) for name in node.keys() if name != "hydra"]  # noqa: SIM118 (missing values)
    wrong, *rest = missing
    if close := nearest(wrong, [*names, *(() if path else group_choices())]):
        meant = f"did you mean {'.'.join([path, close, *rest] if path else [close, *rest])}?"
    elif elsewhere := [full for full in _keys(config) if full.split(".")[-1] == missing[-1]]:
        meant = f"did you mean {' or '.join(elsewhere)}?"
    else:
        meant = f"{path or 'the top level'} has {', '.join(names)}"
    return f"{text}: no such key: {meant}"


def explain_value(override: Override, error: Exception, config: DictConfig) -> str:
    """Explain why Hydra could not set an existing key.

    Args:
        override: with one value.
        error: what Hydra raised.
        config: what it should have been applied to.
    """
    text, key = override.input_line, override.key_or_group
    if override.is_delete():
        return f"{text}: keys cannot be removed, only set"
    if override.is_add() and error.__cause__ is None:
        return f"{text}: the key exists already: drop the +"
    parent, _, name = key.rpartition(".")
    schema = OmegaConf.get_type(OmegaConf.select(config, parent) if parent else config)
    hint = field_hint(schema, name) if schema else None
    if hint is None:
        return f"{text}: {one_line(error.__cause__ or error)}"
    meant = did_you_mean(str(override.value()), enum_names(hint))
    return f"{text}: must be {describe(hint)}{':' if meant else ''}{meant}"


def _is_mapping(node: DictConfig) -> bool:
    return OmegaConf.get_type(node) is dict


def _descend(key: str, config: DictConfig) -> tuple[str, Any, list[str]]:
    """Follow a dotted key as far as it exists: the path so far, the node there, the parts left."""
    node: Any = config
    parts = [part.partition("[")[0] for part in key.split(".")]
    for count, part in enumerate(parts):
        if not isinstance(node, DictConfig) or part not in node.keys():  # noqa: SIM118
            return ".".join(parts[:count]), node, parts[count:]
        node = None if OmegaConf.is_missing(node, part) else node[part]
    return key, node, []


def _keys(config: DictConfig, path: str = "") -> list[str]:
    """List every dotted key of the configuration, Hydra's own left out."""
    found = []
    for name in map(str, config.keys()):
        if f"{path}{name}" != "hydra":
            found.append(f"{path}{name}")
            simple = OmegaConf.is_missing(config, name) or OmegaConf.is_interpolation(config, name)
            node = None if simple else config[name]
            found += _keys(node, f"{path}{name}.") if isinstance(node, DictConfig) else []
    return found

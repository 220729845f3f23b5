"""The drafter stage: fresh, or warm-started from a checkpoint. Names no algorithm."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from speculators.algorithms.base import Drafter, StepContext
from speculators.algorithms.registry import drafter_class
from speculators.config.schema import Config, Init, SpeculatorConfig
from speculators.conversion.integrity import TOKENIZER_KEY, check_tokenizer
from speculators.conversion.layout import load_weights, read_serving_config, read_vocabulary
from speculators.data.prepared import PreparedData
from speculators.errors import ConfigError
from speculators.launch.verifier_stage import Verifier
from speculators.launch.vocabulary_stage import choose_vocabulary
from speculators.verifier.weights import read_layers

# What may change between a checkpoint and the run that starts from it, beside the algorithm's own
# keys: how the weights are trained or written, but nothing that gives a weight its meaning.
_FREE_KEYS = {
    "dtype",
    "speculators_config",
    "speculators_training",
    "speculators_version",
    "transformers_version",
    TOKENIZER_KEY,  # compared by itself, with the vocabulary
}


def build_drafter(config: Config, verifier: Verifier, data: PreparedData) -> Drafter[Any]:
    """Build the drafter the configuration asks for, on the verifier's device.

    Raises:
        ConfigError: settings that cannot go with this verifier or with the checkpoint of a warm
            start, all of them at once.
        CheckpointError: the checkpoint of a warm start is damaged.
    """
    algorithm = drafter_class(config.speculator.name)
    folder = config.speculator.from_pretrained
    saved = None if folder is None else read_serving_config(Path(folder))
    asked = config.speculator
    if saved is not None:
        asked = _with_saved(asked, algorithm.config_from_serving(saved))
    settings = algorithm.resolve(asked, verifier.spec, verifier.unused_token_ids(data))
    if folder is None:
        vocabulary = choose_vocabulary(settings.draft_vocab_size, verifier, data)
    else:
        vocabulary = read_vocabulary(Path(folder), verifier.spec.vocab_size)
        check_tokenizer(Path(folder), saved or {}, vocabulary, verifier.spec)
    tables = verifier.tables()
    drafter = algorithm.build(
        settings,
        verifier.spec,
        vocabulary,
        embed_tokens=tables.embed_tokens,
        lm_head=tables.lm_head,
        generator=StepContext(config.seed, step=0).generator("init"),
        attention=config.attention,
    )
    if folder is None and settings.init is Init.verifier:
        layers = read_layers(verifier.spec, drafter.copied_layers())
        drafter.start_from_verifier(layers, verifier.head().norm_weight.cpu())
    if folder is not None and saved is not None:
        free = _FREE_KEYS | algorithm.free_serving_keys
        problems = list(_differences(saved, drafter.serving_config(), free))
        if problems:
            raise ConfigError([f"speculator.from_pretrained={folder}: {p}" for p in problems])
        load_weights(drafter, Path(folder))
    return drafter.to(verifier.device)


def _with_saved(asked: SpeculatorConfig, saved: SpeculatorConfig) -> SpeculatorConfig:
    """Let the checkpoint answer what the configuration leaves open."""
    if asked.name != saved.name:
        raise ConfigError(
            f"speculator.from_pretrained={asked.from_pretrained}: holds a {saved.name} drafter; "
            f"use speculator={saved.name}"
        )
    open_fields = [
        f.name
        for f in dataclasses.fields(asked)
        if getattr(asked, f.name) is None and f.name != "from_pretrained"
    ]
    return dataclasses.replace(asked, **{name: getattr(saved, name) for name in open_fields})


def _differences(
    saved: Mapping[str, Any],
    new: Mapping[str, Any],
    free: Collection[str] = (),
    prefix: str = "",
) -> Iterator[str]:
    for key in sorted(saved.keys() | new.keys()):
        old, now = saved.get(key), new.get(key)
        if old == now or key in free:
            continue
        if isinstance(old, Mapping) and isinstance(now, Mapping):
            yield from _differences(old, now, prefix=f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} is {old} there and {now} here; it cannot change in a warm start"

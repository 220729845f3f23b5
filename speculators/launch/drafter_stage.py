"""The drafter stage: fresh, or warm-started from a checkpoint. Names no algorithm."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from speculators.algorithms.base import Drafter, StepContext
from speculators.algorithms.registry import drafter_class
from speculators.config.schema import Config, Init
from speculators.conversion.integrity import TOKENIZER_KEY, check_tokenizer
from speculators.conversion.layout import load_weights, read_vocabulary
from speculators.data.prepared import PreparedData
from speculators.errors import ConfigError
from speculators.launch.transplant_stage import Transplant, transplant
from speculators.launch.verifier_stage import Verifier
from speculators.launch.vocabulary_stage import choose_vocabulary
from speculators.launch.warm_start import KEY, WarmStart, find_warm_start
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
# What a start from a drafter of another verifier matches to this one.
_MATCHED_KEYS = {
    "aux_hidden_state_layer_ids",
    "eagle_aux_hidden_state_layer_ids",
    "draft_vocab_size",
    "mask_token_id",
    "transformer_layer_config.max_position_embeddings",
    "transformer_layer_config.vocab_size",
}


@dataclass(frozen=True)
class Built:
    """A drafter before training.

    Attributes:
        drafter: on the verifier's device.
        transplant: how it came from a drafter of another verifier; None where it did not.
        notices: lines a user should read.
        fresh: builds the same drafter with random weights.
    """

    drafter: Drafter[Any]
    transplant: Transplant | None
    notices: tuple[str, ...]
    fresh: Callable[[], Drafter[Any]]


def build_drafter(config: Config, verifier: Verifier, data: PreparedData) -> Built:
    """Build the drafter the configuration asks for.

    Raises:
        ConfigError: settings that cannot go with this verifier or with the checkpoint of a warm
            start, all of them at once.
        CheckpointError: the checkpoint of a warm start is damaged.
    """
    algorithm = drafter_class(config.speculator.name)
    start, spec = find_warm_start(config, verifier.spec), verifier.spec
    asked = config.speculator
    if start is not None:
        asked, spec = start.answer(asked, spec), start.drafter_spec(spec)
    settings = algorithm.resolve(asked, spec, verifier.unused_token_ids(data))
    if start is None or start.origin is not None:
        vocabulary = choose_vocabulary(settings.draft_vocab_size, verifier, data)
    else:
        vocabulary = read_vocabulary(start.folder, spec.vocab_size)
        check_tokenizer(start.folder, start.serving, vocabulary, spec)
    tables = verifier.tables()

    def make() -> Drafter[Any]:
        return algorithm.build(
            settings,
            spec,
            vocabulary,
            embed_tokens=tables.embed_tokens,
            lm_head=tables.lm_head,
            generator=StepContext(config.seed, step=0).generator("init"),
            attention=config.attention,
        )

    drafter, found = make(), None
    if start is None and settings.init is Init.verifier:
        layers = read_layers(verifier.spec, drafter.copied_layers())
        drafter.start_from_verifier(layers, verifier.head().norm_weight.cpu())
    if start is not None:
        _refuse_changes(start, drafter)
        if start.origin is None:
            load_weights(drafter, start.folder)
        else:
            found = transplant(start, drafter, verifier, data)
    notices = (start.notice,) if start is not None and start.notice else ()
    device = verifier.device
    return Built(drafter.to(device), found, notices, lambda: make().to(device))


def _refuse_changes(start: WarmStart, drafter: Drafter[Any]) -> None:
    """Refuse settings under which the checkpoint's weights would mean something else."""
    free = _FREE_KEYS | drafter.free_serving_keys
    if start.origin is not None:
        free |= _MATCHED_KEYS
    problems = list(_differences(start.serving, drafter.serving_config(), free))
    if problems:
        raise ConfigError([f"{KEY}={start.folder}: {problem}" for problem in problems])


def _differences(
    saved: Mapping[str, Any],
    new: Mapping[str, Any],
    free: Collection[str],
    prefix: str = "",
) -> Iterator[str]:
    for key in sorted(saved.keys() | new.keys()):
        old, now = saved.get(key), new.get(key)
        if old == now or f"{prefix}{key}" in free:
            continue
        if isinstance(old, Mapping) and isinstance(now, Mapping):
            yield from _differences(old, now, free, prefix=f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} is {old} there and {now} here; it cannot change in a warm start"

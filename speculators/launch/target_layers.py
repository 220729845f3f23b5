"""The verifier layers a drafter reads, before there is any data to build the drafter with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from speculators.algorithms.registry import drafter_class
from speculators.config.schema import Config
from speculators.conversion.layout import read_serving_config
from speculators.verifier.spec import VerifierSpec


def target_layer_ids(config: Config, spec: VerifierSpec) -> tuple[int, ...]:
    """Return the ids the configured drafter reads, ascending, without the last stream.

    Settled as training settles them: as configured, else as the checkpoint of a warm start has
    them, else by the algorithm's rule.

    Raises:
        ConfigError: settings that cannot go with this verifier.
        CheckpointError: the checkpoint of a warm start is damaged.
    """
    asked = config.speculator
    algorithm = drafter_class(asked.name)
    if asked.target_layer_ids is None and asked.from_pretrained is not None:
        saved = algorithm.config_from_serving(read_serving_config(Path(asked.from_pretrained)))
        asked = replace(asked, target_layer_ids=saved.target_layer_ids)
    # Which rows no text uses is not known yet, and no layer depends on it.
    any_rows = list(range(spec.vocab_size - 1, -1, -1))
    return tuple(algorithm.resolve(asked, spec, any_rows).target_layer_ids or ())

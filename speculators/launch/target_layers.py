"""The verifier layers a drafter reads, before there is any data to build the drafter with."""

from __future__ import annotations

from speculators.algorithms.registry import drafter_class
from speculators.config.schema import Config
from speculators.launch.warm_start import find_warm_start
from speculators.verifier.spec import VerifierSpec


def target_layer_ids(config: Config, spec: VerifierSpec) -> tuple[int, ...]:
    """Return the ids the configured drafter reads, ascending, without the last stream.

    Settled as training settles them: as configured, else as the checkpoint of a warm start has
    them (as deep, where it was made for another verifier), else by the algorithm's rule.

    Raises:
        ConfigError: settings that cannot go with this verifier.
        CheckpointError: the checkpoint of a warm start is damaged.
    """
    asked, start = config.speculator, find_warm_start(config, spec)
    if start is not None:
        asked, spec = start.answer(asked, spec), start.drafter_spec(spec)
    algorithm = drafter_class(asked.name)
    # Which rows no text uses is not known yet, and no layer depends on it.
    any_rows = list(range(spec.vocab_size - 1, -1, -1))
    return tuple(algorithm.resolve(asked, spec, any_rows).target_layer_ids or ())

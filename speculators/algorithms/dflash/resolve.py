"""What null means for a given verifier, and which settings cannot go with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.dflash.loss import default_gamma
from speculators.algorithms.dflash.target_layers import dflash_layer_ids
from speculators.algorithms.resolving import fill, mask_problems, refuse, unused_token
from speculators.verifier.spec import VerifierSpec

_NUM_STATES = 5
ConfigT = TypeVar("ConfigT", bound=DFlashConfig)


def resolve(config: ConfigT, spec: VerifierSpec, unused_token_ids: Sequence[int]) -> ConfigT:
    """Return `config` without nulls.

    Raises:
        ConfigError: everything that cannot go with the verifier, one line each.
    """
    filled = fill(
        config,
        spec,
        target_layer_ids=list(dflash_layer_ids(spec.num_layers, _NUM_STATES)),
        mask_token_id=unused_token(spec, unused_token_ids),
        loss_decay_gamma=default_gamma(config.block_size),
        num_sliding_layers=0 if config.sliding_window is None else config.num_layers,
    )
    return refuse(filled, spec, mask_problems(filled.mask_token_id, spec, unused_token_ids))

"""`config.json` of a P-EAGLE checkpoint, both ways, as vLLM 0.32 reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.conventions import Conventions
from speculators.algorithms.eagle3.fused_conventions import engine_fused_conventions
from speculators.algorithms.eagle3.serving import fused_keys, fused_layer_config, read_fused
from speculators.algorithms.peagle.config import PEagleConfig
from speculators.algorithms.serving import (
    common_config,
    need,
    read_common,
    read_num_draft_tokens,
    read_training,
)
from speculators.errors import CheckpointError
from speculators.verifier.spec import VerifierSpec

TRAINED_WITH = (
    "max_anchors",
    "slot_decay",
    "loss",
    "ce_labels",
    "input_noise",
    "train_lm_head",
    "activation_checkpointing",
)
"""Settings kept in the checkpoint that serving does not need."""


def serving_config(config: PEagleConfig, spec: VerifierSpec) -> dict[str, Any]:
    """Return what vLLM needs to serve the drafter, and how it was trained.

    Args:
        config: resolved settings.
        spec: the verifier.
    """
    common = common_config(
        config,
        spec,
        architecture="PEagleDraftModel",
        num_draft_tokens=config.num_draft_tokens,
        layer=fused_layer_config(config, spec),
        trained_with=TRAINED_WITH,
    )
    return common | fused_keys(config) | {"mask_token_id": config.mask_token_id}


def config_from_serving(serving: Mapping[str, Any]) -> PEagleConfig:
    """Rebuild the resolved settings from `config.json`.

    Raises:
        CheckpointError: a key is missing or has a value this code cannot run.
    """
    for key in ("fc_norm", "norm_output"):
        if serving.get(key):
            raise CheckpointError(
                f"config.json: {key}=true: the serving engine ignores it in a peagle drafter"
            )
    return PEagleConfig(
        **read_common(serving, "peagle"),
        **read_fused(serving, norm_before_residual=False),
        num_draft_tokens=read_num_draft_tokens(serving),
        mask_token_id=need(serving, "mask_token_id"),
        **read_training(serving, PEagleConfig(), TRAINED_WITH),
    )


def engine_conventions(serving: Mapping[str, Any]) -> Conventions:
    """Return what vLLM 0.32 makes of the file.

    Raises:
        CheckpointError: a key it needs is missing.
    """
    return engine_fused_conventions(
        serving,
        norm_before_residual=False,
        mask_token_id=need(serving, "mask_token_id"),
    )

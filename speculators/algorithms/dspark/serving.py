"""`config.json` of a DSpark checkpoint, both ways, as vLLM 0.32 reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speculators.algorithms.conventions import Conventions
from speculators.algorithms.dflash import serving as dflash
from speculators.algorithms.dspark.config import DSparkConfig
from speculators.algorithms.serving import need, read_common, read_training
from speculators.errors import CheckpointError
from speculators.verifier.spec import VerifierSpec

TRAINED_WITH = (*dflash.TRAINED_WITH, "confidence_weight")
"""Settings kept in the checkpoint that serving does not need."""


def serving_config(config: DSparkConfig, spec: VerifierSpec) -> dict[str, Any]:
    """Return what vLLM needs to serve the drafter, and how it was trained.

    Args:
        config: resolved settings.
        spec: the verifier.
    """
    common = dflash.serving_config(config, spec, TRAINED_WITH)
    return common | {
        "architectures": ["Qwen3DSparkModel"],
        "markov_rank": config.markov_rank,
        "markov_head_type": "vanilla",
        "enable_confidence_head": config.confidence_weight > 0,
        "confidence_head_with_markov": True,
    }


def config_from_serving(serving: Mapping[str, Any]) -> DSparkConfig:
    """Rebuild the resolved settings from `config.json`.

    Raises:
        CheckpointError: a key is missing or has a value this code cannot run.
    """
    kind = serving.get("markov_head_type", "vanilla")
    if kind != "vanilla":
        raise CheckpointError(f"config.json: markov_head_type={kind}: must be vanilla")
    confidence = bool(serving.get("enable_confidence_head", False))
    if confidence and not serving.get("confidence_head_with_markov", False):
        raise CheckpointError(
            "config.json: confidence_head_with_markov=false: confidence is read off state and "
            "token here"
        )
    common = read_common(serving, "dspark") | dflash.read_block(serving)
    trained = read_training(serving, DSparkConfig(), TRAINED_WITH)
    if not confidence:
        trained["confidence_weight"] = 0.0
    return DSparkConfig(**common, markov_rank=need(serving, "markov_rank"), **trained)


def engine_conventions(serving: Mapping[str, Any]) -> Conventions:
    """Return what vLLM 0.32 makes of the file: sliding layers are causal, whatever it says.

    Raises:
        CheckpointError: a key it needs is missing.
    """
    return dflash.engine_conventions(serving, sliding_is_causal=True)

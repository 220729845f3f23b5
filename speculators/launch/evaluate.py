"""`speculators evaluate`: a checkpoint decodes prompts, losslessly, against plain decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from speculators.config.loading import load_run_config
from speculators.config.schema import Config, VerifierConfig
from speculators.conversion.layout import read_model, read_serving_config
from speculators.data.prepared import PreparedData
from speculators.errors import CheckpointError, ConfigError
from speculators.evaluation.evaluate import evaluate
from speculators.evaluation.summary import summary_table
from speculators.launch.data_stage import prepare_data
from speculators.launch.prompts_stage import find_prompts
from speculators.launch.provenance import write_provenance
from speculators.launch.result import write_json
from speculators.launch.threads import limit_threads
from speculators.launch.verifier_stage import Verifier

FROM_CHECKPOINT = "checkpoint"
"""Value of `verifier.name_or_path` that means: the verifier the checkpoint was trained for."""


def run(config: Config, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate `config.checkpoint` and return what `evaluation.json` holds."""
    console = Console(highlight=False)
    limit_threads(config)
    checkpoint = Path(config.checkpoint or "")
    serving = read_serving_config(checkpoint)
    trained_with = _training_config(checkpoint)
    config = with_verifier(config, trained_with, serving)
    verifier = Verifier(config)
    drafter = read_model(
        checkpoint, spec=verifier.spec, tables=verifier.tables(), attention=config.attention
    ).to(verifier.device)

    def data() -> PreparedData:
        if trained_with is None:
            raise ConfigError(
                "evaluation.prompts=null: the checkpoint does not say what it was trained on; "
                "give a prompt file, evaluation.prompts=FILE"
            )
        same = dataclasses.replace(trained_with, cache_dir=config.cache_dir)
        return prepare_data(same, verifier)

    prompts = find_prompts(config.evaluation, verifier.tokenizer, data)
    result = evaluate(
        verifier.model(),
        drafter,
        verifier.tokenizer,
        prompts,
        config.evaluation,
        seed=config.seed,
        console=console,
    )
    folder = Path(config.output_dir)
    write_provenance(folder, config, argv)
    values = result.to_dict()
    write_json(folder / "evaluation.json", values)
    console.print(summary_table(result))
    console.print(f"written to {folder / 'evaluation.json'}")
    return values


def _training_config(checkpoint: Path) -> Config | None:
    """Return the configuration a checkpoint of ours was trained with."""
    path = checkpoint / "run.yaml"
    return load_run_config(path) if path.exists() else None


def with_verifier(config: Config, trained_with: Config | None, serving: dict[str, Any]) -> Config:
    """Fill in the checkpoint's own verifier where the configuration names none.

    Args:
        config: of this evaluation.
        trained_with: configuration of the run that wrote the checkpoint, if it is known.
        serving: `config.json` of the checkpoint.

    Raises:
        CheckpointError: the checkpoint names no verifier either.
    """
    if config.verifier.name_or_path != FROM_CHECKPOINT:
        return config
    speculators = serving.get("speculators_config") or {}
    named = (speculators.get("verifier") or {}).get("name_or_path")
    if not named:
        raise CheckpointError(
            f"checkpoint={config.checkpoint}: its config.json names no verifier "
            "(speculators_config.verifier); give verifier=hf verifier.name_or_path=DIR"
        )
    known = config.verifier if trained_with is None else trained_with.verifier
    # A checkpoint may come from anywhere: whether code is run is for the command line to say.
    filled = dataclasses.replace(known, name_or_path=named, trust_remote_code=False)
    verifier = dataclasses.replace(filled, **_asked_for(config.verifier))
    return dataclasses.replace(config, verifier=verifier)


def _asked_for(verifier: VerifierConfig) -> dict[str, Any]:
    """Return the settings that are not the schema's own: what was asked for wins."""
    neutral = VerifierConfig(verifier.name, verifier.name_or_path)
    names = (field.name for field in dataclasses.fields(VerifierConfig))
    values = {name: getattr(verifier, name) for name in names}
    return {name: value for name, value in values.items() if value != getattr(neutral, name)}

"""`speculators evaluate`: a checkpoint decodes prompts, here or in a server, losslessly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from speculators.config.loading import load_run_config
from speculators.config.schema import Config, EvaluationConfig, VerifierConfig
from speculators.conversion.layout import read_model, read_serving_config
from speculators.data.prepared import PreparedData
from speculators.errors import CheckpointError, ConfigError
from speculators.evaluation.acceptance import DEFINITION
from speculators.evaluation.evaluate import evaluate
from speculators.evaluation.prompts import Prompt
from speculators.evaluation.result import EvaluationResult
from speculators.evaluation.served import ServedCheckpoint, evaluate_served
from speculators.evaluation.summary import summary_table
from speculators.launch.data_stage import prepare_data
from speculators.launch.prompts_stage import find_prompts
from speculators.launch.provenance import write_provenance
from speculators.launch.result import write_json
from speculators.launch.threads import limit_threads
from speculators.launch.verifier_stage import Verifier
from speculators.verifier.spec import VerifierSpec

FROM_CHECKPOINT = "checkpoint"
"""Value of `verifier.name_or_path` that means: the verifier the checkpoint was trained for."""


def run(config: Config, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate `config.checkpoint` and return what `evaluation.json` holds."""
    console = Console(highlight=False)
    limit_threads(config)
    checkpoint = Path(config.checkpoint or "")
    serving = read_serving_config(checkpoint)
    if config.verifier.name_or_path == FROM_CHECKPOINT:
        config = with_verifier(config, training_config(checkpoint), serving)
    verifier = Verifier(config)

    def data() -> PreparedData:
        trained_with = training_config(checkpoint)
        if trained_with is None:
            raise ConfigError(
                "evaluation.prompts=null: the checkpoint does not say what it was trained on; "
                "give a prompt file, evaluation.prompts=FILE"
            )
        same = dataclasses.replace(trained_with, cache_dir=config.cache_dir)
        return prepare_data(same, verifier)

    longest = verifier.spec.max_position_embeddings - 1
    prompts = find_prompts(config.evaluation, verifier.tokenizer, data, longest)
    job = _Evaluation(config, checkpoint, serving, verifier, prompts, console)
    result, more = job.run()
    folder = Path(config.output_dir)
    write_provenance(folder, config, argv)
    values = {**result.to_dict(), **more}
    write_json(folder / "evaluation.json", values)
    console.print(f"written to {folder / 'evaluation.json'}", soft_wrap=True)
    return values


@dataclass(frozen=True)
class _Evaluation:
    """One checkpoint on one list of prompts."""

    config: Config
    checkpoint: Path
    serving: dict[str, Any]
    verifier: Verifier
    prompts: Sequence[Prompt]
    console: Console

    def run(self) -> tuple[EvaluationResult, dict[str, Any]]:
        """Decode where it is asked for, show it, and return it with what belongs beside it."""
        settings = self.config.evaluation
        if settings.endpoint is None:
            result = self._in_process(settings)
            self._show(result)
            return result, {}
        served = evaluate_served(
            settings.endpoint,
            expected_server(self.checkpoint, self.serving, self.verifier.spec),
            self.verifier.tokenizer,
            self.prompts,
            settings,
            seed=self.config.seed,
            console=self.console,
        )
        if not settings.compare:
            result = served.result()
            self._show(result)
            return result, {}
        # Answers in process are those of plain decoding, whatever the drafter proposes.
        reference = self._in_process(dataclasses.replace(settings, compare=False))
        result = served.result(reference, self.verifier.model())
        self._show(result)
        own = reference.acceptance
        apart = result.acceptance.length / own.length - 1
        self.console.print(
            f"in process on the same prompts: tau {own.length:.3f} ({own.num_drafts} drafts; "
            f"served {result.acceptance.num_drafts}), served is {apart:+.2%} apart"
        )
        return result, {"in_process": own.to_dict(seed=self.config.seed)}

    def _show(self, result: EvaluationResult) -> None:
        self.console.print(summary_table(result))
        self.console.print(DEFINITION, style="dim")

    def _in_process(self, settings: EvaluationConfig) -> EvaluationResult:
        verifier = self.verifier
        drafter = read_model(
            self.checkpoint,
            spec=verifier.spec,
            tables=verifier.tables(),
            attention=self.config.attention,
        ).to(verifier.device)
        return evaluate(
            *(verifier.model(), drafter, verifier.tokenizer, self.prompts, settings),
            seed=self.config.seed,
            console=self.console,
        )


def expected_server(
    checkpoint: Path, serving: Mapping[str, Any], spec: VerifierSpec
) -> ServedCheckpoint:
    """Return what a server of a checkpoint must be: names are compared by their last component.

    Args:
        checkpoint: its folder.
        serving: its `config.json`.
        spec: the verifier.

    Raises:
        CheckpointError: it does not say how many tokens it drafts.
    """
    described = serving.get("speculators_config") or {}
    methods = described.get("proposal_methods") or [{}]
    if "speculative_tokens" not in methods[0]:
        raise CheckpointError(
            f"checkpoint={checkpoint}: its config.json does not say how many tokens it "
            "drafts (speculators_config.proposal_methods); vLLM could not serve it"
        )
    named = (described.get("verifier") or {}).get("name_or_path") or spec.name_or_path
    paths = (str(checkpoint), str(checkpoint.resolve()), named, spec.name_or_path)
    return ServedCheckpoint(
        frozenset(Path(path).name for path in paths),
        int(methods[0]["speculative_tokens"]),
        spec.max_position_embeddings,
    )


def training_config(checkpoint: Path) -> Config | None:
    """Return the configuration a checkpoint of ours was trained with."""
    path = checkpoint / "run.yaml"
    return load_run_config(path) if path.exists() else None


def with_verifier(config: Config, trained_with: Config | None, serving: dict[str, Any]) -> Config:
    """Fill in the checkpoint's own verifier.

    Args:
        config: of this evaluation.
        trained_with: configuration of the run that wrote the checkpoint, if it is known.
        serving: `config.json` of the checkpoint.

    Raises:
        CheckpointError: the checkpoint names no verifier either.
    """
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

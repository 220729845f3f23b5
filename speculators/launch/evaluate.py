"""`speculators evaluate`: a checkpoint decodes prompts, here or in a server, losslessly."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from speculators.algorithms.base import Drafter
from speculators.config.loading import load_run_config
from speculators.config.schema import Config, EvaluationConfig, VerifierConfig
from speculators.console import marked, open_console
from speculators.conversion.durable import replace_text
from speculators.conversion.layout import read_model, read_serving_config
from speculators.data.prepared import PreparedData
from speculators.errors import CheckpointError, ConfigError
from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.best_k import CycleTimes, served_times
from speculators.evaluation.cycle_times import cycle_times
from speculators.evaluation.evaluate import evaluate
from speculators.evaluation.expected import against_published
from speculators.evaluation.report import write_report
from speculators.evaluation.result import EvaluationResult
from speculators.evaluation.served import ServedCheckpoint, evaluate_served
from speculators.evaluation.speed_tables import recommendation, show_speeds
from speculators.evaluation.summary import show_expected, show_result
from speculators.evaluation.written import evaluation_markdown
from speculators.launch.circumstances import under_circumstances
from speculators.launch.compare import compare_results
from speculators.launch.data_stage import prepare_data
from speculators.launch.prompts_stage import ChosenPrompts, find_prompts
from speculators.launch.provenance import write_provenance
from speculators.launch.result import write_json
from speculators.launch.threads import limit_threads
from speculators.launch.verifier_stage import Verifier
from speculators.verifier.spec import VerifierSpec

FROM_CHECKPOINT = "checkpoint"
"""Value of `verifier.name_or_path` that means: the verifier the checkpoint was trained for."""

_ROUNDING = 0.01
"""A served acceptance length further apart than this is another computation, not rounding."""


def run(config: Config, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate `config.checkpoint` and return what `evaluation.json` holds.

    With `config.compare`, compare evaluations and return what `comparison.json` holds.
    """
    if config.compare is not None:
        return compare_results(config, argv)
    console = open_console()
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
                "give a prompt file, evaluation.prompts=FILE, or a suite, evaluation=mt_bench"
            )
        same = dataclasses.replace(trained_with, cache_dir=config.cache_dir)
        return prepare_data(same, verifier)

    longest = verifier.spec.max_position_embeddings - num_draft_tokens(serving, checkpoint) - 1
    prompts = find_prompts(config.evaluation, verifier.tokenizer, data, longest)
    job = _Evaluation(config, checkpoint, serving, verifier, prompts, console)
    result, more = job.run()
    folder = Path(config.output_dir)
    write_provenance(folder, config, argv)
    values = {**result.to_dict(), **more}
    trained_with = training_config(checkpoint)
    expected = config.expected or (trained_with.expected if trained_with else None)
    if expected is not None:
        values["expected"] = against_published(expected, values)
        show_expected(values["expected"], console)
    write_json(folder / "evaluation.json", values)
    replace_text(folder / "evaluation.md", evaluation_markdown(values))
    report = write_report(folder)
    console.print(
        f"written to {folder}: evaluation.json, evaluation.md, {report.name}",
        soft_wrap=True,
    )
    return values


@dataclass(frozen=True)
class _Evaluation:
    """One checkpoint on one list of prompts."""

    config: Config
    checkpoint: Path
    serving: dict[str, Any]
    verifier: Verifier
    chosen: ChosenPrompts
    console: Console

    def run(self) -> tuple[EvaluationResult, dict[str, Any]]:
        """Decode where it is asked for, show it, and return it with what belongs beside it."""
        settings = self.config.evaluation
        if settings.endpoint is None:
            drafter = self._drafter()
            result = self._show(self._in_process(settings, drafter))
            times = self._times(drafter, result)
            return result, recommendation(result.acceptance, times, self.console)
        served = evaluate_served(
            settings.endpoint,
            expected_server(
                *(self.checkpoint, self.serving, self.verifier.spec, self._num_draft_tokens)
            ),
            self.verifier.tokenizer,
            self.chosen.prompts,
            settings,
            seed=self.config.seed,
            console=self.console,
        )
        speeds: dict[str, Any] = {"served": served.speeds()}
        levels = speeds["served"]["levels"]
        show_speeds(levels, self.console)
        times = served_times(levels, speeds["served"]["num_draft_tokens"])
        speeds |= recommendation(served.result().acceptance, times, self.console)
        if not settings.compare or settings.temperature > 0 or settings.baseline_endpoint:
            return self._show(served.result()), speeds
        # Answers in process are those of plain decoding, whatever the drafter proposes.
        reference = self._in_process(dataclasses.replace(settings, compare=False), self._drafter())
        result = self._show(served.result(reference, self.verifier.model()))
        compared = self._compare(result.acceptance, reference.acceptance)
        return result, {"in_process": compared, **speeds}

    def _compare(self, served: Acceptance, own: Acceptance) -> dict[str, Any]:
        """Say how a server's drafts stand to those of this process, and return the latter."""
        same, apart = served.num_equal_prompts(own), served.length / own.length - 1
        self.console.print(
            f"in process on the same prompts: tau {own.length:.3f} ({own.num_drafts} drafts; "
            f"served {served.num_drafts}), served is {apart:+.2%} apart; the same drafts stood on "
            f"{same} of {own.num_prompts} prompts"
        )
        if abs(apart) > _ROUNDING:
            self.console.print(
                marked(
                    "note:",
                    "yellow",
                    " this is more than rounding: that server computes the drafter in another way "
                    'than it was trained (docs/metrics.md, "Where a server differs")',
                )
            )
        return {**own.to_dict(seed=self.config.seed), "equal_prompts": same}

    def _show(self, result: EvaluationResult) -> EvaluationResult:
        """Show a result with the settings it was made under, and return it."""
        complete = under_circumstances(
            result, self.config, self.checkpoint, self.verifier, self.chosen
        )
        show_result(complete, self.console)
        return complete

    def _drafter(self) -> Drafter[Any]:
        drafter = read_model(
            self.checkpoint,
            spec=self.verifier.spec,
            tables=self.verifier.tables(),
            attention=self.config.attention,
        ).to(self.verifier.device)
        drafter.set_num_draft_tokens(self._num_draft_tokens)
        return drafter

    def _in_process(self, settings: EvaluationConfig, drafter: Drafter[Any]) -> EvaluationResult:
        verifier = self.verifier
        return evaluate(
            *(verifier.model(), drafter, verifier.tokenizer, self.chosen.prompts, settings),
            seed=self.config.seed,
            console=self.console,
        )

    def _times(self, drafter: Drafter[Any], result: EvaluationResult) -> list[CycleTimes]:
        """Measure drafting and verifying behind as many tokens as the answers had before them."""
        room = self.verifier.spec.max_position_embeddings - drafter.num_draft_tokens - 1
        middle = statistics.median(row.prompt_tokens + row.tokens // 2 for row in result.rows)
        context = max(2, min(int(middle), room))
        return [
            cycle_times(self.verifier.model(), drafter, context=context, batch_size=size)
            for size in self.config.evaluation.concurrency
        ]

    @property
    def _num_draft_tokens(self) -> int:
        asked = self.config.evaluation.num_draft_tokens
        return asked or num_draft_tokens(self.serving, self.checkpoint)


def expected_server(
    checkpoint: Path, serving: Mapping[str, Any], spec: VerifierSpec, size: int | None = None
) -> ServedCheckpoint:
    """Return what a server of a checkpoint must be: names are compared by their last component.

    Args:
        checkpoint: its folder.
        serving: its `config.json`.
        spec: the verifier.
        size: tokens drafted at a time; None: as the checkpoint says.

    Raises:
        CheckpointError: it does not say how many tokens it drafts.
    """
    described = serving.get("speculators_config") or {}
    named = (described.get("verifier") or {}).get("name_or_path") or spec.name_or_path
    paths = (str(checkpoint), str(checkpoint.resolve()), named, spec.name_or_path)
    return ServedCheckpoint(
        frozenset(Path(path).name for path in paths),
        size or num_draft_tokens(serving, checkpoint),
        spec.max_position_embeddings,
    )


def num_draft_tokens(serving: Mapping[str, Any], checkpoint: Path) -> int:
    """Return the tokens a checkpoint drafts at a time, as its `config.json` says.

    Raises:
        CheckpointError: it does not say.
    """
    described = serving.get("speculators_config") or {}
    methods = described.get("proposal_methods") or [{}]
    if "speculative_tokens" not in methods[0]:
        raise CheckpointError(
            f"checkpoint={checkpoint}: its config.json does not say how many tokens it drafts "
            "(speculators_config.proposal_methods); vLLM could not serve it"
        )
    return int(methods[0]["speculative_tokens"])


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

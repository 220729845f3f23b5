"""`speculators train`: everything that is still missing, then training, evaluation, report."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from speculators.algorithms.base import Drafter
from speculators.config.loading import to_yaml
from speculators.config.schema import Config, HiddenStatesMode
from speculators.config.wording import argument
from speculators.console import marked, open_console
from speculators.conversion.layout import read_model
from speculators.data.coloured import print_samples
from speculators.data.loader import RowLoader
from speculators.data.prepared import PreparedData, SampleSet
from speculators.data.report_view import print_report
from speculators.errors import DataError
from speculators.evaluation.evaluate import evaluate
from speculators.evaluation.expected import against_published
from speculators.evaluation.report import write_report
from speculators.evaluation.result import EvaluationResult
from speculators.evaluation.summary import show_expected, show_result
from speculators.hidden_states.types import HiddenStateSource
from speculators.launch.circumstances import under_circumstances
from speculators.launch.data_stage import prepare_data
from speculators.launch.doctor_stage import attend
from speculators.launch.drafter_stage import Built, build_drafter
from speculators.launch.forecast_stage import MakeTrainer, forecast_start
from speculators.launch.prompts_stage import ChosenPrompts, find_prompts
from speculators.launch.provenance import write_provenance
from speculators.launch.result import summarise, write_json
from speculators.launch.states_stage import open_source
from speculators.launch.threads import limit_threads
from speculators.launch.tracking_stage import show_outcome
from speculators.launch.validation_stage import Validation
from speculators.launch.verifier_stage import Verifier
from speculators.launch.vocabulary_stage import announce_vocabulary
from speculators.training.checkpoint import CheckpointFolder
from speculators.training.profile import watched_steps
from speculators.training.ranks import Ranks
from speculators.training.result import TrainResult
from speculators.training.schedule import count_steps
from speculators.training.step import uses_bfloat16
from speculators.training.trackers import Tracking, open_trackers
from speculators.training.trainer import Trainer
from speculators.verifier.head import VerifierHead


def run(config: Config, argv: Sequence[str] = (), ranks: Ranks | None = None) -> dict[str, Any]:
    """Train a drafter as configured and return what `result.json` holds.

    Args:
        config: the whole configuration, valid.
        argv: command line, for the record.
        ranks: the processes of the run, each of which calls this; only the main one writes,
            evaluates and returns something.

    Raises:
        SpeculatorsError: anything the user can mend; see the message.
    """
    limit_threads(config)
    ranks = ranks or Ranks()
    job = _Training(config, open_console(quiet=not ranks.is_main), ranks)
    return job.run(argv)


class _Training:
    """One run, stage by stage; what a stage makes stays for the later ones."""

    def __init__(self, config: Config, console: Console, ranks: Ranks) -> None:
        self.config, self.console, self.ranks = config, console, ranks
        self.folder = Path(config.output_dir)
        self.verifier = Verifier(config)

    def run(self, argv: Sequence[str]) -> dict[str, Any]:
        with self.ranks.main_first():
            data = prepare_data(self.config, self.verifier)
        built = build_drafter(self.config, self.verifier, data)
        prompts = self._prompts(data, built.drafter.num_draft_tokens)
        self._announce(data, built)
        with open_trackers(self.config.tracker) if self.ranks.is_main else Tracking() as tracking:
            trained = self._fit(data, built, argv, tracking)
            if not self.ranks.is_main:
                return {}
            return self._finish(built.drafter, prompts, trained, tracking)

    def _finish(
        self,
        drafter: Drafter[Any],
        prompts: ChosenPrompts,
        trained: TrainResult,
        tracking: Tracking,
    ) -> dict[str, Any]:
        """Decode, write and show what came out."""
        evaluation = self._evaluate(prompts, trained)
        if evaluation is not None:
            show_result(evaluation, self.console)
            found = evaluation.to_dict()
            if self.config.expected is not None:
                found["expected"] = against_published(self.config.expected, found)
                show_expected(found["expected"], self.console)
            write_json(self.folder / "evaluation.json", found)
        result = summarise(trained, evaluation, drafter)
        write_json(self.folder / "result.json", result)
        report = write_report(self.folder)
        show_outcome(tracking, self.folder, trained, result)
        self._conclude(trained, result, report)
        return result

    def _announce(self, data: PreparedData, built: Built) -> None:
        drafter = built.drafter
        for notice in (*self.verifier.tokenizer.notices, *built.notices):
            self.console.print(marked("note:", "yellow", f" {notice}"), soft_wrap=True)
        print_report(data.report, self.console)
        if self.config.show:
            print_samples(data.train, self.verifier.tokenizer, self.config.show, self.console)
        if not drafter.vocabulary.is_full:
            announce_vocabulary(
                drafter.vocabulary,
                self.verifier,
                data,
                drafter.num_draft_tokens,
                self.console,
            )
        moving = sum(p.numel() for p in drafter.trainable_parameters().values())
        self.console.print(
            f"{drafter.config.name}: {moving:,} trainable parameters, drafts "
            f"{drafter.num_draft_tokens} tokens, reads layers {drafter.config.target_layer_ids} of "
            f"{self.verifier.spec.num_layers} ({self.verifier.spec.architecture}) on "
            f"{self.verifier.device}"
        )
        for line in built.transplant.lines() if built.transplant is not None else ():
            self.console.print(line, soft_wrap=True)
        self.console.print(f"run directory: {self.folder}", soft_wrap=True)

    def _fit(
        self, data: PreparedData, built: Built, argv: Sequence[str], tracking: Tracking
    ) -> TrainResult:
        drafter = built.drafter
        layer_ids = list(drafter.config.target_layer_ids or ())
        source = open_source(_share_of(self.config, self.ranks), self.verifier, layer_ids)
        head = self.verifier.head()
        try:
            held_out = data.validation
            source.start([*data.train.sample_ids(), *held_out.sample_ids()])
            limit = self.config.training.validation_samples
            if limit is not None and len(held_out) > limit:
                held_out = held_out.select(range(limit))
            validation = Validation(
                self._loader(held_out, source, len(layer_ids), shuffle=False),
                head,
                self.verifier.tokenizer.end_of_turn_ids,
                self.verifier.device,
                self.config.seed,
            )
            rows = self._loader(data.train, source, len(layer_ids), shuffle=True)
            make = functools.partial(self._trainer, data, source, head, rows, validation, tracking)
            trainer = make(self.config, drafter, self.folder)
            trainer.restore()
            # Not before it is clear that this is the run of the folder, or a new one.
            if self.ranks.is_main:
                write_provenance(self.folder, self.config, argv)
                write_json(self.folder / "data_report.json", data.report.to_dict())
                self._note_start(built, validation, make, rows)
            with watched_steps(
                self.config.training.profile_steps if self.ranks.is_main else None,
                drafter,
                self.verifier.device,
                self.folder,
                self.console,
                bfloat16=uses_bfloat16(self.config.training.precision, self.verifier.device),
            ):
                return trainer.fit()
        finally:
            source.close()

    def _trainer(
        self,
        data: PreparedData,
        source: HiddenStateSource,
        head: VerifierHead,
        rows: RowLoader,
        validation: Validation,
        tracking: Tracking,
        config: Config,
        drafter: Drafter[Any],
        folder: Path,
    ) -> Trainer:
        """Return the trainer of a run, or of a short one that tells what to expect of it."""
        whole = folder == self.folder
        return Trainer(
            config,
            drafter,
            head,
            rows,
            run_dir=folder,
            validate=validation,
            tracking=tracking if whole else None,
            certify=(
                attend(config, self.verifier, source, data, ranks=self.ranks, console=self.console)
                if whole
                else None
            ),
            fingerprints={
                "data": data.fingerprint,
                "vocabulary": drafter.vocabulary.fingerprint,
                "verifier": self.verifier.revision(),
            },
            device=self.verifier.device,
            run_yaml=to_yaml(config),
            console=self.console if whole else open_console(quiet=True),
            ranks=self.ranks,
        )

    def _note_start(
        self, built: Built, validation: Validation, make: MakeTrainer, rows: RowLoader
    ) -> None:
        """Write what the drafter came from and, before a first step, what that is worth."""
        if built.transplant is not None:
            write_json(self.folder / "transplant.json", built.transplant.to_dict())
        saved = CheckpointFolder(self.folder / "checkpoints", keep_last=None).newest()
        if saved is not None or not self.config.speculator.forecast_steps:
            return
        last = count_steps(rows.rows_in_epoch, self.config.training)
        found = forecast_start(self.config, built.drafter, built.fresh, validation, make, last)
        write_json(self.folder / "forecast.json", found.to_dict())
        for line in found.lines():
            self.console.print(line, soft_wrap=True)

    def _loader(
        self, samples: SampleSet, source: HiddenStateSource, num_aux: int, *, shuffle: bool
    ) -> RowLoader:
        return RowLoader(
            samples,
            source,
            sequence_length=self.config.training.sequence_length,
            num_aux_layers=num_aux,
            hidden_size=self.verifier.spec.hidden_size,
            seed=self.config.seed,
            shuffle=shuffle,
            pin_memory=self.verifier.device.type == "cuda",
        )

    def _prompts(self, data: PreparedData, num_draft_tokens: int) -> ChosenPrompts:
        """Return what will be decoded after training; none where nothing will be.

        Read before training, so that a bad file does not show after hours.
        """
        settings = self.config.evaluation
        in_process = self.config.hidden_states.mode is HiddenStatesMode.embedded
        if not settings.enabled or not in_process:
            return ChosenPrompts()
        longest = self.verifier.spec.max_position_embeddings - num_draft_tokens - 1
        chosen = find_prompts(settings, self.verifier.tokenizer, lambda: data, longest)
        if not chosen.prompts:
            raise DataError(
                "evaluation.prompts=null: no held-out conversation begins with a prompt; give "
                "evaluation.prompts=FILE, or evaluation.enabled=false"
            )
        return chosen

    def _evaluate(self, chosen: ChosenPrompts, trained: TrainResult) -> EvaluationResult | None:
        """Decode with the best checkpoint, read back from its folder as a server would."""
        if not chosen.prompts or trained.best_checkpoint is None:
            return None
        drafter = read_model(
            trained.best_checkpoint,
            spec=self.verifier.spec,
            tables=self.verifier.tables(),
            attention=self.config.attention,
        ).to(self.verifier.device)
        result = evaluate(
            self.verifier.model(),
            drafter,
            self.verifier.tokenizer,
            chosen.prompts,
            self.config.evaluation,
            seed=self.config.seed,
            console=self.console,
        )
        return under_circumstances(
            result, self.config, trained.best_checkpoint, self.verifier, chosen
        )

    def _conclude(self, trained: TrainResult, result: dict[str, Any], report: Path) -> None:
        say = functools.partial(self.console.print, soft_wrap=True)
        length = result["acceptance_length"]
        if length is not None:
            interval = result["acceptance_length_ci95"]
            spread = (
                "" if interval is None else " (95 % interval {:.2f} to {:.2f})".format(*interval)
            )
            rest = (
                f"{spread} on {result['num_prompts']} prompts: that many tokens per verifier call, "
                f"{result['verifier_calls_saved']:.0%} of the calls saved"
            )
            say(marked(f"\nacceptance length {length:.2f}", "bold", rest))
        elif trained.best_value is not None:
            say(
                f"\n{self.config.training.best_metric.value} {trained.best_value:.2f} on "
                "validation rows; nothing was decoded (evaluation.enabled=false, or hidden states "
                "that are not computed in this process): the next command does"
            )
        say(f"report:      {report}")
        say(f"checkpoint:  {result['checkpoint']}")
        say(f"next:        speculators evaluate {argument('checkpoint', result['checkpoint'])}")
        say(f"serve:       vllm serve {shlex.quote(result['checkpoint'])}")


def _share_of(config: Config, ranks: Ranks) -> Config:
    """Let all ranks together keep as many requests in flight as one process would."""
    fetch = config.hidden_states.fetch
    requests = max(1, fetch.requests_per_endpoint // ranks.world_size)
    fetch = dataclasses.replace(fetch, requests_per_endpoint=requests)
    states = dataclasses.replace(config.hidden_states, fetch=fetch)
    return dataclasses.replace(config, hidden_states=states)

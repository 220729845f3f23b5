"""The training loop of every algorithm: one process, exact resume.

A step ends with its events, in this order: a line of metrics, validation, a checkpoint. Each is
due by the step number alone, so a run that was killed anywhere repeats exactly what came after
its newest checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from speculators.algorithms.base import Drafter
from speculators.config.schema import Config
from speculators.errors import CheckpointError, HiddenStateError
from speculators.training.checkpoint import CheckpointFolder
from speculators.training.ema import WeightAverage
from speculators.training.guard import note_bad_step, stop_if_lost
from speculators.training.interrupt import InterruptError, StopRequest
from speculators.training.journal import Journal
from speculators.training.memory import peak_memory_bytes
from speculators.training.metrics import MetricSums
from speculators.training.optimizers import build_optimizers
from speculators.training.result import TrainResult
from speculators.training.resume import compare, require_resumable, settings_of
from speculators.training.rows import EpochRows, RowSource
from speculators.training.schedule import Schedule, count_steps
from speculators.training.state import TrainerState, read_state
from speculators.training.step import Stepper, StepReport
from speculators.training.trackers import NoTracker, Tracker
from speculators.training.validation import Validate, note_validation, validate_undisturbed
from speculators.training.waiting import Waiting, waiting_text
from speculators.training.weights import TrainedWeights
from speculators.verifier.head import VerifierHead


class Trainer:
    """Trains one drafter on one device, and goes on where an earlier start of the run stopped.

    Args:
        config: the whole configuration; `training`, `optimizer`, `schedule` and `seed` are used.
        drafter: moved to `device`; its trainable weights become fp32.
        teacher: the verifier's norm and head; moved to `device`.
        loader: packed rows by epoch.
        run_dir: gets `metrics.jsonl`, `timing.jsonl` and `checkpoints/`.
        validate: measures the drafter on held-out rows; None makes the newest checkpoint the best.
        tracker: where metrics go besides the files.
        fingerprints: name -> content hash of what must not change between starts (data,
            vocabulary, verifier); the loader's own is added.
        device: where to train.
        run_yaml: text of `run.yaml` in checkpoints; None writes the settings.
        console: where progress is drawn; None is standard error.

    Raises:
        ConfigError: nothing to train, or an unknown optimizer.
        DataError: there are no rows.
    """

    def __init__(
        self,
        config: Config,
        drafter: Drafter[Any],
        teacher: VerifierHead,
        loader: RowSource,
        *,
        run_dir: Path,
        validate: Validate | None,
        tracker: Tracker | None = None,
        fingerprints: Mapping[str, str] | None = None,
        device: torch.device,
        run_yaml: str | None = None,
        console: Console | None = None,
    ) -> None:
        self._settings = config.training
        self._drafter, self._loader, self._validate = drafter.to(device), loader, validate
        self._run_dir, self._device = run_dir, device
        self._tracker = tracker or NoTracker()
        self._console = console or Console(stderr=True, highlight=False)
        parameters = drafter.trainable_parameters()
        for parameter in parameters.values():
            parameter.data = parameter.data.float()
        optimizers = build_optimizers(parameters, config.optimizer)
        decay = self._settings.ema_decay
        average = None if decay is None else WeightAverage(parameters, decay)
        self._weights = TrainedWeights(drafter, optimizers, average)
        self._total_steps = count_steps(loader.rows_in_epoch, self._settings)
        self._schedule = Schedule(config.schedule, self._total_steps)
        self._stepper = Stepper(
            drafter,
            teacher.to(device),
            optimizers,
            device,
            self._settings.precision,
            self._settings.clip_norm,
            config.seed,
        )
        self._checkpoints = CheckpointFolder(run_dir / "checkpoints", self._settings.keep_last)
        self._sums = MetricSums()
        self._state = TrainerState()
        self._plain_settings = settings_of(config, drafter.config)
        self._fingerprints = {"rows": loader.fingerprint, **(fingerprints or {})}
        self._run_yaml = run_yaml or json.dumps(self._plain_settings, indent=2) + "\n"
        self._saved_step = 0
        self._restored = False
        self._waiting = Waiting(loader)

    def fit(self) -> TrainResult:
        """Train to the last step, or return at once when an earlier start has done so.

        Raises:
            CheckpointError: the run's checkpoints belong to other settings, or cannot be written.
            InterruptError: a signal came; everything is saved.
            HiddenStateError: no more hidden states could be had; everything is saved.
            SpeculatorsError: too many steps in a row were not finite.
        """
        self.restore()
        state = self._state
        if state.position.step >= self._total_steps and not state.validation_due:
            self._say(
                f"{self._run_dir}: training is complete ({state.position.step} steps); nothing to "
                "do. More steps: raise training.max_steps or training.epochs; a new run: choose "
                "another output_dir"
            )
            return self._result()
        self._start, self._seconds_before = time.perf_counter(), state.seconds
        self._drafter.train()
        journal = Journal(self._run_dir, state, self._total_steps, self._tracker, self._console)
        with journal, StopRequest() as stop:
            try:
                if state.validation_due:
                    self._validate_and_save(journal, epoch_ends=self._epoch_ends())
                while state.position.step < self._total_steps:
                    self._train_epoch(journal, stop)
            except HiddenStateError as error:  # of samples to come: every step made is whole
                raise type(error)(f"{error}. {self._save_last(journal)}") from error
        return self._result()

    def restore(self) -> None:
        """Load the newest complete checkpoint, if there is one and it is this run's.

        `fit` does it too; called before, a refusal comes before the caller has written anything.

        Raises:
            CheckpointError: the run's checkpoints belong to other settings, or are damaged.
        """
        if self._restored:
            return
        self._checkpoints.remove_unfinished()
        for name in self._checkpoints.incomplete():
            self._say(f"checkpoints/{name}: is not complete, so it is left alone")
        name = self._checkpoints.newest()
        if name is not None:
            self._go_on_from(name)
        self._state.settings = self._plain_settings
        self._state.fingerprints = self._fingerprints
        self._state.total_steps = self._total_steps
        self._restored = True

    def _go_on_from(self, name: str) -> None:
        root, settings = self._checkpoints.root, self._settings
        if not settings.resume:
            raise CheckpointError(
                f"training.resume=false: {root} holds a run already (newest: {name}); choose "
                "another output_dir, or let it go on with training.resume=true"
            )
        state = read_state(root / name)
        differences = compare(state, self._plain_settings, self._fingerprints)
        accepted = require_resumable(f"{root / name}", differences, settings.allow_changes)
        for line in accepted:
            self._say(f"changed since {name}: {line}")
        self._weights.load(self._checkpoints, name)
        self._sums.load(state.metric_sums, self._device)
        self._state, self._saved_step = state, state.position.step
        self._checkpoints.point_to_best(state)
        self._say(f"going on from checkpoints/{name}: step {self._saved_step}")

    def _train_epoch(self, journal: Journal, stop: StopRequest) -> None:
        """Train on the rest of the present epoch, or on the next when it is over."""
        position = self._state.position
        if position.row >= self._loader.rows_in_epoch(position.epoch):
            position.epoch, position.row = position.epoch + 1, 0
        waited, start = 0.0, time.perf_counter()
        with EpochRows(self._loader, position.epoch, position.row) as rows:
            while position.row < rows.num_rows and position.step < self._total_steps:
                count = min(self._settings.accumulation_steps, rows.num_rows - position.row)
                factor = self._schedule.factor(position.step)
                report = self._stepper.run(rows.take(count), position.step, factor)
                position.row += count
                self._account(report, journal)
                seconds = time.perf_counter() - start
                self._state.step_seconds += seconds
                self._waiting.add(seconds, rows.seconds - waited, first=waited == 0.0)
                self._log(report, journal, seconds)
                self._validate_and_save(journal, epoch_ends=self._epoch_ends())
                self._stop_if_asked(journal, stop)
                waited, start = rows.seconds, time.perf_counter()

    def _account(self, report: StepReport, journal: Journal) -> None:
        state, position = self._state, self._state.position
        position.step += 1
        position.tokens += report.num_tokens
        position.supervised_tokens += report.num_supervised
        if report.bad_tensor is None:
            self._sums.add(report.output)
        if report.gradient_norm is not None:
            self._sums.add_value("gradient_norm", report.gradient_norm, report.output.loss_sum)
        if report.moved and self._weights.average is not None:
            self._weights.average.update()
        journal.advance(position.step)
        bad = note_bad_step(state, report)
        if bad is not None:
            journal.metrics("bad_step", state, bad)
            stop_if_lost(state, self._settings.max_bad_steps, bad)

    def _log(self, report: StepReport, journal: Journal, seconds: float) -> None:
        state, position = self._state, self._state.position
        if position.step < self._total_steps and position.step % self._settings.log_every_steps:
            return
        values = {
            "loss": None,
            "gradient_norm": None,
            **self._sums.values(),
            "learning_rate": report.learning_rate,
            "skipped_steps": state.bad_steps,
            "tokens": position.tokens,
            "supervised_tokens": position.supervised_tokens,
        }
        self._sums.clear()
        waiting = self._waiting.report()
        journal.status(waiting_text(waiting))
        journal.metrics("train", state, values)
        timing = {
            "seconds": seconds,
            "tokens_per_second": report.num_tokens / max(seconds, 1e-9),
            "mean_tokens_per_second": position.tokens / max(state.step_seconds, 1e-9),
        }
        journal.timing("step", state, {**timing, **waiting})
        if (advice := self._waiting.advice(waiting)) is not None:
            journal.say(advice)

    def _validate_and_save(self, journal: Journal, *, epoch_ends: bool) -> None:
        settings, state = self._settings, self._state
        step, done = state.position.step, state.position.step == self._total_steps
        every = settings.validate_every_steps
        due = epoch_ends if every is None else step % every == 0
        improved = self._validate_now(journal) if due or done else False
        every = settings.checkpoint_every_steps
        due = epoch_ends or done or (every is not None and step % every == 0)
        if self._saved_step == step:  # by an outage, before this validation
            if improved:
                state.best_checkpoint = state.saved[-1]
                self._checkpoints.point_to_best(state)
        elif due or improved:
            self._save(journal, state.position.epoch if epoch_ends or done else None)

    def _epoch_ends(self) -> bool:
        position = self._state.position
        return position.row >= self._loader.rows_in_epoch(position.epoch)

    def _validate_now(self, journal: Journal) -> bool:
        """Validate; return whether this is the best so far."""
        if self._validate is None:
            return False
        start, self._state.validation_due = time.perf_counter(), True
        values = validate_undisturbed(
            self._validate, self._drafter, self._weights.average, self._stepper.autocast()
        )
        self._state.validation_due = False
        journal.metrics("validation", self._state, values)
        journal.timing("validation", self._state, {"seconds": time.perf_counter() - start})
        return note_validation(self._state, values, self._settings.best_metric)

    def _save(self, journal: Journal, epoch: int | None) -> str:
        """Write a checkpoint of the present step; return its folder name."""
        state, start = self._state, time.perf_counter()
        journal.flush()
        name = self._checkpoints.free_name(epoch, state.position.step)
        best_now = self._validate is None or state.best_step == state.position.step
        if best_now or state.best_checkpoint is None:
            state.best_checkpoint = name
        state.metric_sums = self._sums.state()
        state.seconds = self._seconds_before + start - self._start
        state.peak_memory_bytes = max(state.peak_memory_bytes, peak_memory_bytes(self._device))
        self._checkpoints.save(
            name,
            state,
            write_model=lambda folder: self._weights.write_model(
                folder, self._settings.checkpoint_dtype
            ),
            tensors=self._weights.tensors(self._schedule, state.position.step),
            run_yaml=self._run_yaml,
        )
        self._saved_step = state.position.step
        journal.timing("checkpoint", state, {"seconds": time.perf_counter() - start})
        return name

    def _stop_if_asked(self, journal: Journal, stop: StopRequest) -> None:
        step = self._state.position.step
        if stop.signal is None or step >= self._total_steps:
            return
        self._save_last(journal)
        raise InterruptError(stop.signal, step, f"checkpoints/{self._state.saved[-1]}")

    def _save_last(self, journal: Journal) -> str:
        """Save the last whole step unless it is saved already; say where it is."""
        step = self._state.position.step
        if step == 0:
            return "No step was made"
        if self._saved_step != step:
            self._save(journal, None)
        return f"Saved checkpoints/{self._state.saved[-1]} after step {step}"

    def _result(self) -> TrainResult:
        state, root = self._state, self._checkpoints.root
        position = state.position
        rows = self._loader.rows_in_epoch(position.epoch)
        return TrainResult(
            steps=position.step,
            epochs=position.epoch + min(position.row, rows) / rows,
            best_checkpoint=root / state.best_checkpoint if state.best_checkpoint else None,
            last_checkpoint=root / state.saved[-1] if state.saved else None,
            best_value=state.best_value,
            seconds=state.seconds,
            tokens=position.tokens,
            tokens_per_second=position.tokens / max(state.step_seconds, 1e-9),
            peak_memory_bytes=state.peak_memory_bytes,
        )

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

"""The training loop of every algorithm: one process or many, exact resume.

A step ends with its events, in this order: a line of metrics, validation, a checkpoint. Each is
due by the step number alone, so a run that was killed anywhere repeats exactly what came after
its newest checkpoint.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from speculators.algorithms.base import Drafter
from speculators.config.schema import Config, TrainingConfig
from speculators.console import open_console
from speculators.data.types import PackedBatch
from speculators.errors import CheckpointError, HiddenStateError, LaunchError
from speculators.modules.compiling import compiler_problem, num_graphs
from speculators.training.accounts import Accounts
from speculators.training.certify import Certify, certify_start
from speculators.training.checkpoint import CheckpointFolder
from speculators.training.ema import WeightAverage
from speculators.training.interrupt import InterruptError, StopRequest
from speculators.training.journal import Journal, NoJournal
from speculators.training.memory import peak_memory_bytes
from speculators.training.optimizers import build_optimizers
from speculators.training.outlook import Outlook
from speculators.training.ranks import Ranks
from speculators.training.result import TrainResult
from speculators.training.resume import compare, require_resumable, settings_of
from speculators.training.rows import EpochRows, RowSource
from speculators.training.saving import Saver
from speculators.training.schedule import Schedule, count_steps
from speculators.training.spread import spread_drafter
from speculators.training.state import TrainerState, read_state
from speculators.training.step import Stepper, StepReport, uses_bfloat16
from speculators.training.trackers import Tracking
from speculators.training.validation import Validate, note_validation, validate_undisturbed
from speculators.training.waiting import Waiting, waiting_text
from speculators.training.watchdog import Watchdog
from speculators.training.weights import TrainedWeights
from speculators.verifier.head import VerifierHead


class Trainer:
    """Trains one drafter, and goes on where an earlier start of the run stopped.

    Of several ranks each has its own trainer; the main one writes the files, the screen and the
    checkpoints.

    Args:
        config: the whole configuration; `training`, `optimizer`, `schedule` and `seed` are used.
        drafter: moved to `device`; its trainable weights become fp32.
        teacher: the verifier's norm and head; moved to `device`.
        loader: packed rows by epoch.
        run_dir: gets `metrics.jsonl`, `timing.jsonl` and `checkpoints/`.
        validate: measures the drafter on held-out rows; None makes the newest checkpoint the best.
        tracking: who is shown the metrics besides the files; the caller closes it.
        certify: examines the drafter before the first step and at every checkpoint.
        fingerprints: name -> content hash of what must not change between starts (data,
            vocabulary, verifier); the loader's own is added.
        device: where to train.
        run_yaml: text of `run.yaml` in checkpoints; None writes the settings.
        console: where progress is drawn; None is standard error.
        ranks: the processes of the run.

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
        tracking: Tracking | None = None,
        certify: Certify | None = None,
        fingerprints: Mapping[str, str] | None = None,
        device: torch.device,
        run_yaml: str | None = None,
        console: Console | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._settings = config.training
        self._ranks = ranks = ranks or Ranks()
        require_compiler(self._settings, device)
        self._drafter, self._loader, self._validate = drafter.to(device), loader, validate
        self._run_dir, self._device = run_dir, device
        self._tracking, self._certify = tracking or Tracking(), certify
        self._console = console or open_console(stderr=True)
        parameters = drafter.trainable_parameters()
        for parameter in parameters.values():
            parameter.data = parameter.data.float()
        spread = spread_drafter(
            drafter,
            ranks,
            config.launcher,
            device=device,
            bfloat16=uses_bfloat16(self._settings.precision, device),
        )
        parameters = drafter.trainable_parameters()
        optimizers = build_optimizers(parameters, config.optimizer)
        decay = self._settings.ema_decay
        average = None if decay is None else WeightAverage(parameters, decay)
        self._weights = TrainedWeights(drafter, optimizers, average, spread, ranks)
        self._rows_per_step = self._settings.accumulation_steps * ranks.world_size
        self._total_steps = count_steps(loader.rows_in_epoch, self._settings, ranks.world_size)
        self._schedule = Schedule(config.schedule, self._total_steps)
        longest = drafter.num_draft_tokens + 1
        self._outlook = Outlook(self._settings.stop_when, self._total_steps, longest)
        self._stopped: str | None = None
        self._stepper = Stepper(
            drafter,
            teacher.to(device),
            optimizers,
            device,
            self._settings.precision,
            self._settings.clip_norm,
            config.seed,
            ranks,
            spread,
            self._settings.compile,
        )
        self._checkpoints = CheckpointFolder(run_dir / "checkpoints", self._settings.keep_last)
        self._state = TrainerState()
        self._plain_settings = settings_of(config, drafter.config)
        self._plain_settings["rows_per_step"] = self._rows_per_step
        self._fingerprints = {"rows": loader.fingerprint, **(fingerprints or {})}
        self._saver = Saver(
            self._checkpoints,
            self._weights,
            self._settings.checkpoint_dtype,
            run_yaml or json.dumps(self._plain_settings, indent=2) + "\n",
            in_background=self._settings.checkpoint_in_background,
            certify=certify,
            arithmetic=self._stepper.autocast,
        )
        self._saved_step = 0
        self._watchdog = Watchdog(ranks.rank, config.launcher.stall_seconds, _print_line)
        self._waiting = Waiting(loader)
        self._restored = False

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
        if self._is_over() and not state.validation_due:
            self._say_complete()
            return self._result()
        self._start, self._seconds_before = time.perf_counter(), state.seconds
        self._drafter.train()
        if self._certify is not None and state.position.step == 0:
            certify_start(self._certify, self._weights, self._stepper.autocast)
        journal = self._open_journal()
        patient = self._ranks.world_size > 1  # signals come twice: directly, and from the agent
        with journal, self._watchdog, StopRequest(insist=not patient) as stop:
            try:
                if state.validation_due:
                    self._validate_and_save(journal, epoch_ends=self._epoch_ends())
                while not self._is_over():
                    self._train_epoch(journal, stop)
                self._saver.finish()
            except HiddenStateError as error:  # of samples to come: every step made is whole
                raise type(error)(f"{error}. {self._save_last(journal)}") from error
            finally:
                self._saver.wait()
        return self._result()

    def _open_journal(self) -> Journal | NoJournal:
        if not self._ranks.is_main:
            return NoJournal()
        state, total = self._state, self._total_steps
        return Journal(self._run_dir, state, total, self._tracking, self._console)

    def restore(self) -> None:
        """Load the newest complete checkpoint, if there is one and it is this run's.

        `fit` does it too; called before, a refusal comes before the caller has written anything.

        Raises:
            CheckpointError: the run's checkpoints belong to other settings, or are damaged.
        """
        if self._restored:
            return
        with self._ranks.main_first():
            self._checkpoints.remove_unfinished()
        for name in self._checkpoints.incomplete():
            self._say(f"checkpoints/{name}: is not complete, so it is left alone")
        name = self._ranks.share(self._checkpoints.newest())
        if name is not None:
            self._go_on_from(name)
        self._state.settings = self._plain_settings
        self._state.fingerprints = self._fingerprints
        self._state.total_steps = self._total_steps
        limit = self._settings.max_bad_steps
        self._accounts = Accounts(self._state, self._device, limit, self._ranks)
        self._stopped = self._outlook.stop_reason(self._state)
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
        self._state, self._saved_step = state, state.position.step
        if self._ranks.is_main:
            self._checkpoints.point_to_best(state)
        self._say(f"going on from checkpoints/{name}: step {self._saved_step}")

    def _train_epoch(self, journal: Journal | NoJournal, stop: StopRequest) -> None:
        """Train on the rest of the present epoch, or on the next when it is over."""
        position = self._state.position
        if position.row >= self._loader.rows_in_epoch(position.epoch):
            position.epoch, position.row = position.epoch + 1, 0
        waited, start = 0.0, time.perf_counter()
        with EpochRows(self._loader, position.epoch, position.row, self._ranks) as rows:
            while position.row < rows.num_rows and not self._is_over():
                left = min(self._rows_per_step, rows.num_rows - position.row)
                count = -(-left // self._ranks.world_size)
                factor = self._schedule.factor(position.step)
                mine = self._watched(rows.take(count))
                report = self._stepper.run(mine, count, position.step, factor)
                position.row, position.step = position.row + left, position.step + 1
                if self._weights.average is not None:
                    self._weights.average.update(report.usable)
                self._accounts.add(report, journal)
                seconds = time.perf_counter() - start
                self._state.step_seconds += seconds
                self._waiting.add(seconds, rows.seconds - waited, first=waited == 0.0)
                self._log(report, journal, seconds)
                self._validate_and_save(journal, epoch_ends=self._epoch_ends())
                self._stop_if_asked(journal, stop)
                waited, start = rows.seconds, time.perf_counter()

    def _watched(self, rows: Iterable[PackedBatch]) -> Iterator[PackedBatch]:
        """Hand out rows; when one rank gets no more hidden states, all stop at the same row.

        Raises:
            HiddenStateError: here, or on another rank.
        """
        step, iterator = self._state.position.step, iter(rows)
        while True:
            self._watchdog.at(f"waiting for rows of step {step}", self._loader.awaited)
            row, problem = None, None
            try:
                row = next(iterator, None)
            except HiddenStateError as error:
                problem = error
            self._watchdog.at(f"waiting for the other ranks in step {step}")
            if self._ranks.highest(int(problem is not None)):
                found = self._ranks.gather(problem)
                raise next(error for error in found if error is not None)
            if row is None:
                return
            taken = row.sample_ids
            self._watchdog.at(f"training in step {step}", lambda taken=taken: taken)
            yield row

    def _log(self, report: StepReport, journal: Journal | NoJournal, seconds: float) -> None:
        state, position = self._state, self._state.position
        if position.step < self._total_steps and position.step % self._settings.log_every_steps:
            return
        self._accounts.settle(journal)
        values = {
            **self._accounts.means(),
            "learning_rate": report.learning_rate,
            "skipped_steps": state.bad_steps,
            "tokens": position.tokens,
            "supervised_tokens": position.supervised_tokens,
        }
        waiting = self._waiting.report()
        journal.status(waiting_text(waiting))
        journal.metrics("train", position, values)
        timing = {
            "seconds": seconds,
            "tokens_per_second": report.num_tokens / max(seconds, 1e-9),
            "mean_tokens_per_second": position.tokens / max(state.step_seconds, 1e-9),
            "compiled_graphs": num_graphs(),
        }
        journal.timing("step", state, {**timing, **waiting})
        if (advice := self._waiting.advice(waiting)) is not None:
            journal.say(advice)

    def _validate_and_save(self, journal: Journal | NoJournal, *, epoch_ends: bool) -> None:
        self._watchdog.at("")
        settings, state = self._settings, self._state
        step, done = state.position.step, state.position.step == self._total_steps
        every = settings.validate_every_steps
        due = epoch_ends if every is None else step % every == 0
        improved = self._validate_now(journal) if due or done else False
        every = settings.checkpoint_every_steps
        due = epoch_ends or self._is_over() or (every is not None and step % every == 0)
        if self._saved_step == step:  # by an outage, before this validation
            if improved and self._ranks.is_main:
                state.best_checkpoint = state.saved[-1]
                self._checkpoints.point_to_best(state)
        elif due or improved:
            self._save(journal, state.position.epoch if epoch_ends or done else None)

    def _is_over(self) -> bool:
        return self._stopped is not None or self._state.position.step >= self._total_steps

    def _epoch_ends(self) -> bool:
        position = self._state.position
        return position.row >= self._loader.rows_in_epoch(position.epoch)

    def _validate_now(self, journal: Journal | NoJournal) -> bool:
        """Validate; return whether this is the best so far."""
        if self._validate is None:
            return False
        self._saver.finish()
        start, self._state.validation_due = time.perf_counter(), True
        values = validate_undisturbed(self._validate, self._weights, self._stepper.autocast())
        self._state.validation_due = False
        values |= self._outlook.note(self._state, values)
        journal.metrics("validation", self._state.position, values)
        self._stopped = self._outlook.stop_reason(self._state)
        if self._stopped is not None:
            journal.say(f"training ends here: {self._stopped}")
        journal.timing("validation", self._state, {"seconds": time.perf_counter() - start})
        return note_validation(self._state, values, self._settings.best_metric)

    def _save(self, journal: Journal | NoJournal, epoch: int | None) -> None:
        """Begin to write a checkpoint of the present step; every rank gives its part."""
        state, start = self._state, time.perf_counter()
        self._saver.finish()
        self._accounts.settle(journal)
        journal.flush(state)
        name, step = "", state.position.step
        if self._ranks.is_main:
            name = self._checkpoints.free_name(epoch, step)
        name = self._ranks.share(name)
        best_now = self._validate is None or state.best_step == step
        if best_now or state.best_checkpoint is None:
            state.best_checkpoint = name
        state.metric_sums = self._ranks.gather(self._accounts.sums.state())
        state.seconds = self._seconds_before + start - self._start
        state.peak_memory_bytes = max(state.peak_memory_bytes, peak_memory_bytes(self._device))
        state.world_size = self._ranks.world_size
        self._saver.begin(name, state, self._schedule)
        self._saved_step = step
        journal.timing("checkpoint", state, {"seconds": time.perf_counter() - start})

    def _stop_if_asked(self, journal: Journal | NoJournal, stop: StopRequest) -> None:
        step = self._state.position.step
        signal = self._ranks.highest(stop.signal or 0)
        if not signal or self._is_over():
            return
        self._save_last(journal)
        raise InterruptError(signal, step, f"checkpoints/{self._state.saved[-1]}")

    def _save_last(self, journal: Journal | NoJournal) -> str:
        """Save the last whole step unless it is saved already; say where it is."""
        step = self._state.position.step
        if step == 0:
            return "No step was made"
        if self._saved_step != step:
            self._save(journal, None)
        self._saver.finish()
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
            stopped=self._stopped,
            forecast=self._outlook.expected(state),
        )

    def _say_complete(self) -> None:
        step, at = self._state.position.step, f"{self._run_dir}: training"
        if step < self._total_steps:
            self._say(
                f"{at} ended at step {step} of {self._total_steps}: {self._stopped}; nothing to "
                "do. Go on: change training.stop_when; a new run: choose another output_dir"
            )
            return
        self._say(
            f"{at} is complete ({step} steps); nothing to do. More steps: raise "
            "training.max_steps or training.epochs; a new run: choose another output_dir"
        )

    def _say(self, text: str) -> None:
        if not self._ranks.is_main:
            return
        self._console.print(text, soft_wrap=True)


def require_compiler(settings: TrainingConfig, device: torch.device) -> None:
    """Find out before the first step whether `training.compile=true` can be had.

    Raises:
        LaunchError: nothing can be compiled here.
    """
    problem = compiler_problem(device) if settings.compile else None
    if problem is not None:
        raise LaunchError(
            f"training.compile=true: nothing can be compiled for {device} here ({problem}); "
            "install a C++ compiler (g++ or clang++, or name one in CXX), or set "
            "training.compile=false"
        )


def _print_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

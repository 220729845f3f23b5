"""Checkpoints written behind the training: copied at once, on the disk a little later."""

from __future__ import annotations

import contextlib
import copy
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from speculators.config.schema import FloatType
from speculators.conversion.folders import Content
from speculators.conversion.integrity import WEIGHTS_FILE
from speculators.conversion.layout import ModelFiles
from speculators.errors import CheckpointError
from speculators.training.certify import Accompany, Arithmetic, Certify, certify_undisturbed
from speculators.training.checkpoint import CheckpointFolder
from speculators.training.schedule import Schedule
from speculators.training.state import TrainerState
from speculators.training.weights import TrainedWeights


class Saver:
    """Saves one checkpoint at a time.

    A checkpoint counts once its folder has its name; a process that dies before loses only it, and
    nothing older is deleted before. Every rank must call every method, in the same order.

    Args:
        checkpoints: where they go.
        weights: what is saved.
        dtype: number format of `model.safetensors`.
        run_yaml: content of `run.yaml`.
        in_background: whether training goes on while a checkpoint is written.
        certify: examines what is about to be written, before training goes on.
        arithmetic: of the run.
    """

    def __init__(
        self,
        checkpoints: CheckpointFolder,
        weights: TrainedWeights,
        dtype: FloatType,
        run_yaml: str,
        *,
        in_background: bool,
        certify: Certify | None = None,
        arithmetic: Arithmetic = contextlib.nullcontext,
    ) -> None:
        self._certify, self._arithmetic = certify, arithmetic
        self._checkpoints, self._weights = checkpoints, weights
        self._dtype, self._run_yaml, self._in_background = dtype, run_yaml, in_background
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._open: tuple[TrainerState, TrainerState, Future[None]] | None = None

    def begin(self, name: str, state: TrainerState, schedule: Schedule) -> None:
        """Copy everything a checkpoint holds, and write it from the copy.

        Args:
            name: folder name, from `CheckpointFolder.free_name`.
            state: as it is now; its `saved` list is brought up to date by `finish`.
            schedule: of the run.

        Raises:
            CheckpointError: the weights are not fit to be saved, or the checkpoint before this
                one could not be written.
        """
        self.finish()
        ranks, folder = self._weights.ranks, self._checkpoints.root / name
        aside = Path(ranks.share(str(self._checkpoints.parts(name))))
        files = self._weights.stage(schedule, state.position.step, aside)
        with self._weights.servable() as drafter:
            model = None if drafter is None else ModelFiles.of(drafter, self._dtype, folder)
            accompany: Accompany | None = None
            if drafter is not None and model is not None and self._certify is not None:
                content = Content(folder, folder / WEIGHTS_FILE, model.config, model.tensors)
                accompany = certify_undisturbed(self._certify, drafter, content, self._arithmetic)
        written = copy.deepcopy(state)

        def write() -> None:
            tensors = files()
            if tensors is not None and model is not None:
                self._checkpoints.save(
                    name,
                    written,
                    write_model=model.write,
                    tensors=tensors,
                    run_yaml=self._run_yaml,
                    accompany=accompany,
                )

        self._open = state, written, self._thread.submit(write)
        if not self._in_background:
            self.finish()

    def finish(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            CheckpointError: it could not be written, here or on another rank.
        """
        if self._open is None:
            return
        (state, written, _), problem = self._open, self.wait()
        found = self._weights.ranks.gather(None if problem is None else str(problem))
        if problem is not None:
            raise problem
        for rank, text in enumerate(found):
            if text is not None:
                raise CheckpointError(f"rank {rank} could not write its checkpoint: {text}")
        state.saved = self._weights.ranks.share(written.saved)

    def wait(self) -> BaseException | None:
        """Wait for this rank alone; return what went wrong. For ranks that part with an error."""
        if self._open is None:
            return None
        *_, future = self._open
        self._open = None
        return future.exception()

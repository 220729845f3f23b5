"""`training`, `launcher`: the loop and its processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from speculators.config.schema.problem import Problem, at_least, between, positive


class Precision(Enum):
    """Arithmetic of forward and backward; weights and optimizer are always fp32."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class FloatType(Enum):
    """Number format of saved weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class BestMetric(Enum):
    """What makes a checkpoint the best one."""

    acceptance_length = "acceptance_length"
    loss = "loss"


@dataclass
class StopWhenConfig:
    """End a run before its last step; looked at after each validation, null: never.

    By the acceptance length walked on validation rows and by its forecast for the last step (95 %
    interval). What was trained until then is saved and evaluated as at the end of a run.
    """

    reached: float | None = None
    """The acceptance length is at least this."""
    patience: int | None = None
    """So many validations in a row brought no better acceptance length."""
    forecast_below: float | None = None
    """Even the upper end of the forecast is below this: the run will not get there."""
    plateau: float | None = None
    """Even the upper end of the forecast is less than this above the best so far."""
    after_fraction: float = 0.25
    """Not before this share of all steps."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        for name in ("reached", "forecast_below"):
            yield from at_least(self, name, 1)
        yield from at_least(self, "patience", 1)
        yield from positive(self, "plateau")
        yield from between(self, "after_fraction", 0, 1)


@dataclass
class TrainingConfig:
    """Length, batches, checkpoints and validation of one run."""

    name: str = "default"
    """Short name of the choice."""
    epochs: int = 1
    """Passes over the training rows."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; null: by epochs. Also the schedule's length."""
    sequence_length: int = MISSING
    """Tokens per packed row."""
    accumulation_steps: int = 1
    """Packed rows per optimizer step."""
    clip_norm: float | None = 1.0
    """Largest gradient norm; null does not clip. The norm is logged either way."""
    precision: Precision = Precision.auto
    """auto: bfloat16 on a GPU, float32 on a CPU."""
    compile: bool = False
    """Let `torch.compile` fuse the drafter's layers; needs a compiler (g++ or clang++ on a CPU)."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights, and save and validate that."""
    validation_fraction: float = 0.1
    """Share of the conversations held out for validation."""
    validate_every_steps: int | None = None
    """Validate every n steps; null: at the end of each epoch."""
    validation_samples: int | None = 64
    """Use at most this many validation samples; null uses all."""
    checkpoint_every_steps: int | None = None
    """Save every n steps besides the end of each epoch."""
    checkpoint_in_background: bool = True
    """Copy what is saved and go on while it is written; needs host memory for one more copy of
    weights and optimizer state."""
    keep_last: int | None = 2
    """Newest checkpoints kept, beside the best; null keeps all."""
    best_metric: BestMetric = BestMetric.acceptance_length
    """Chooses `checkpoint_best`; ties keep the older."""
    checkpoint_dtype: FloatType = FloatType.bfloat16
    """Format of `model.safetensors`; fp32 masters are kept beside the optimizer either way."""
    log_every_steps: int = 10
    """One line of `metrics.jsonl` every n steps."""
    profile_steps: int | None = None
    """Time the parts of so many steps after the first, then trace one and watch the memory of one
    (`profile.json`, `trace.json`); null: off."""
    stop_when: StopWhenConfig = field(default_factory=StopWhenConfig)
    """Ends the run early."""
    max_bad_steps: int = 10
    """Steps with a NaN or infinite gradient are skipped; after this many in a row the run stops."""
    resume: bool = True
    """Go on from the newest complete checkpoint of `output_dir`."""
    allow_changes: list[str] = field(default_factory=list)
    """Dotted keys that may differ from the run that is resumed."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        for name in ("epochs", "accumulation_steps", "log_every_steps", "max_bad_steps"):
            yield from at_least(self, name, 1)
        for name in ("max_steps", "validate_every_steps", "checkpoint_every_steps", "keep_last"):
            yield from at_least(self, name, 1)
        yield from at_least(self, "validation_samples", 1)
        yield from at_least(self, "profile_steps", 1)
        yield from at_least(self, "sequence_length", 8)
        yield from positive(self, "clip_norm")
        yield from between(self, "ema_decay", 0, 1)
        if not 0 < self.validation_fraction < 1:
            yield Problem(
                "validation_fraction", self.validation_fraction, "must lie between 0 and 1"
            )


@dataclass
class LauncherConfig:
    """How one run is spread over processes."""

    name: str = MISSING
    """single, ddp (replicas) or fsdp (shards)."""
    num_processes: int = 1
    """Processes on this machine, one per device; each takes `training.accumulation_steps` rows of
    every step."""
    num_nodes: int = 1
    """Machines; the same command is started on each, with one `output_dir` on a shared disk."""
    rendezvous: str | None = None
    """HOST:PORT of the first machine, where the others find it."""
    cpu_offload: bool = False
    """fsdp: keep weights, gradients and optimizer state in host memory, and update them there."""
    stall_seconds: float | None = 600.0
    """A process that is at one thing for so long is named, with the samples it has; null: never."""
    timeout_seconds: float = 1800.0
    """Processes that wait for each other's gradients for so long give up; and so long they may take
    to finish their step and save once a signal came."""

    @property
    def starts_processes(self) -> bool:
        """Whether the run happens in processes of its own."""
        return self.name != "single"

    def problems(self) -> Iterator[Problem]:
        """Check ranges, and what several machines need."""
        yield from at_least(self, "num_processes", 1)
        yield from at_least(self, "num_nodes", 1)
        yield from positive(self, "stall_seconds")
        yield from positive(self, "timeout_seconds")
        if self.name not in ("single", "ddp", "fsdp"):
            yield Problem("name", self.name, "allowed: single, ddp, fsdp")
        if self.cpu_offload and self.name != "fsdp":
            yield Problem("cpu_offload", True, "only shards can be kept on the host: launcher=fsdp")
        if self.num_nodes > 1 and self.rendezvous is None:
            text = "several machines meet at one of them: give launcher.rendezvous=HOST:PORT"
            yield Problem("rendezvous", None, text)
        if self.name == "single":
            for key in ("num_processes", "num_nodes"):
                if getattr(self, key) > 1:
                    yield Problem(key, getattr(self, key), "launcher=single runs one: use ddp")
